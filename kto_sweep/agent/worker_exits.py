"""Workers that exit: each is replaced, unless its device or one of its trials is to blame. Pure.

A GPU that vanishes ends its worker; by retry_policy.py it is quarantined, and its trials are requeued.
"""

import signal

from kto_sweep.agent import shutdown, slots
from kto_sweep.agent import trial_lifecycle as trials
from kto_sweep.agent.events import WorkerExited
from kto_sweep.agent.retry_policy import (
    ISOLATED_AFTER,
    WorkerExit,
    exit_cause,
    is_hardware,
    is_retried,
    is_sick,
)
from kto_sweep.agent.state import Assignment, Phase
from kto_sweep.agent.transition import RESTART_SECONDS, Transition
from kto_sweep.errors import KtoSweepError

MAX_IDLE_EXITS = 3
"""So many exits of a worker that has no trial mean that it cannot work here."""


def on_worker_exit(t: Transition, event: WorkerExited) -> None:
    """Replace a worker that exited, or give up its device or the trial that killed it."""
    before, name = t.devices[event.device], event.device
    if t.state.phase is Phase.SHUTTING_DOWN:
        _forget_worker(t, name)
        for slot in t.slots_of(name):
            shutdown.clear(t, slot.number)
        return
    output = before.exit_message or event.output
    started = before.ready or event.status < 0
    running = _forget_worker(t, name)
    # A worker that ended by itself before it was ready would do so again, unless one was ready before.
    hopeless = not before.was_ready and event.status >= 0
    idle = 0 if running else MAX_IDLE_EXITS if hopeless else before.idle_exits + 1
    t.set_device(name, idle_exits=idle)
    if before.device.visible and started:  # exits of a worker that did not start are counted as idle ones
        suspects = [trial for trial in running.values() if trial.isolated] or list(running.values())
        names = frozenset(trial.run_id for trial in suspects)
        exits = (*t.state.worker_exits, WorkerExit(name, names, is_hardware(output)))
        t.update(worker_exits=exits)
    others = any(not other.quarantined for other in t.devices.values() if other.device.name != name)
    how = f"signal {_signal_name(-event.status)}" if event.status < 0 else f"exit status {event.status}"
    if is_sick(name, t.state.worker_exits, t.state.culprits, others=others) or idle >= MAX_IDLE_EXITS:
        quarantine(t, name, f"the worker on {name} ended with {how}:\n{output}")
        return
    why = f" ({before.exit_message.partition(chr(10))[0]})" if before.exit_message else ""
    when = "" if started else f" in {RESTART_SECONDS:.0f} s"
    t.say(f"{name}: the worker ended with {how}{why}; starting another{when}")
    _isolate_or_convict(t, running, exit_cause(output), f"the last with {how}; log: {before.log}")
    if t.open_slots(name):
        if started:
            t.start_worker(name)
        else:
            t.schedule_restart(name)


def _forget_worker(t: Transition, name: str) -> dict[int, Assignment]:
    """The device has no worker: a failure of each trial that it had, by slot."""
    t.set_device(name, worker=0, ready=False)
    failed = {}
    for slot in t.running(name):
        assert slot.trial is not None
        failed[slot.number] = slot.trial.record_failure()
        t.set_slot(slot.number, trial=failed[slot.number])
    return failed


def _isolate_or_convict(t: Transition, running: dict[int, Assignment], cause: str, how: str) -> None:
    """End the trial that no worker survives; of several, have each run alone."""
    if len(running) == 1:
        [(number, trial)] = running.items()
        t.set_trial(number, isolated=False)
        if not is_retried(cause, trial.failures):
            t.update(culprits=t.state.culprits | {trial.run_id})
            trials.fail(t, number, cause, f"{trial.failures} workers ended under this trial, {how}")
        return
    for number, trial in running.items():
        t.set_trial(number, isolated=trial.failures >= ISOLATED_AFTER)


def give_up_worker(t: Transition, name: str, reason: str) -> None:
    """Stop using a device whose worker cannot be killed."""
    _forget_worker(t, name)
    quarantine(t, name, reason)


def quarantine(t: Transition, name: str, why: str) -> None:
    """Stop using a device; its trials move to another one. Without another one the agent ends."""
    device = t.set_device(name, quarantined=True, restart_at=None)
    visible, log = device.device.visible, f"its whole log: {device.log}"
    hint = f"nvidia-smi -i {visible}   ({log})" if visible else log
    if all(other.quarantined for other in t.devices.values()):
        shutdown.abort(t, KtoSweepError(why, hint=hint))
        return
    t.say(f"{name} is no longer used: {why}\n  Look: {hint}")
    slots.requeue_from(t, name)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return str(number)
