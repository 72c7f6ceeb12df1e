"""Handles worker exits: replaces the worker, unless its device or one of its trials is to blame. Pure.

When a GPU disappears, its worker exits; retry_policy.py then quarantines the GPU and its trials are requeued.
"""

import signal

from kto_sweep.agent import shutdown, slots
from kto_sweep.agent import trial_lifecycle as trials
from kto_sweep.agent.events import WorkerExited
from kto_sweep.agent.retry_policy import (
    WorkerExit,
    are_isolated,
    exit_cause,
    is_hardware,
    is_retried_after_exit,
    is_sick,
)
from kto_sweep.agent.state import Assignment, Phase
from kto_sweep.agent.transition import RESTART_SECONDS, Transition
from kto_sweep.errors import FailureCause, KtoSweepError

MAX_IDLE_EXITS = 3
"""After this many consecutive exits without a trial, the device is considered unusable."""


def on_worker_exit(t: Transition, event: WorkerExited) -> None:
    """Replace a worker that exited, or give up on its device or the trial that killed it."""
    before, name = t.devices[event.device], event.device
    if t.state.phase is Phase.SHUTTING_DOWN:
        _forget_worker(t, name)
        for slot in t.slots_of(name):
            shutdown.clear(t, slot.number)
        return
    output = before.exit_message or event.output
    started = before.ready or event.status < 0
    running = _forget_worker(t, name)
    # If a worker exits on its own before it is ready, and none was ready before, the next will exit too.
    cannot_start = not before.was_ready and event.status >= 0
    idle = 0 if running else MAX_IDLE_EXITS if cannot_start else before.idle_exits + 1
    t.set_device(name, idle_exits=idle)
    cause = before.exit_cause or exit_cause(output)
    # Workers that did not start count as idle exits; errors of a program say nothing about the device.
    if before.device.visible and started and cause.is_retried:
        suspects = [trial for trial in running.values() if trial.isolated] or list(running.values())
        names = frozenset(trial.run_id for trial in suspects)
        exits = (*t.state.worker_exits, WorkerExit(name, names, is_hardware(output)))
        t.update(worker_exits=exits)
    others = any(not other.quarantined for other in t.devices.values() if other.device.name != name)
    end = (
        f"was killed by {_signal_name(-event.status)}"
        if event.status < 0
        else f"exited with status {event.status}"
    )
    if is_sick(name, t.state.worker_exits, t.state.culprits, others=others) or idle >= MAX_IDLE_EXITS:
        quarantine(t, name, f"the worker on {name} {end}:\n{output}")
        return
    reason = f" ({before.exit_message.partition(chr(10))[0]})" if before.exit_message else ""
    delay = "" if started else f" in {RESTART_SECONDS:.0f} s"
    t.say(f"{name}: the worker {end}{reason}; starting another{delay}")
    said = "" if cause.is_retried else f": {before.exit_message}"
    _isolate_or_fail(t, running, cause, f"the last one {end}{said}; log: {before.log}")
    if t.open_slots(name):
        if started:
            t.start_worker(name)
        else:
            t.schedule_restart(name)


def _forget_worker(t: Transition, name: str) -> dict[int, Assignment]:
    """Record that the device has no worker; returns its running trials, each with a failure, by slot."""
    t.set_device(name, worker=0, ready=False)
    failed = {}
    for slot in t.running(name):
        assert slot.trial is not None
        failed[slot.number] = slot.trial.record_failure()
        t.set_slot(slot.number, trial=failed[slot.number])
    return failed


def _isolate_or_fail(
    t: Transition, running: dict[int, Assignment], cause: FailureCause, details: str
) -> None:
    """Fail a single trial that keeps killing workers; run several suspects one at a time."""
    if len(running) == 1:
        [(number, trial)] = running.items()
        t.set_trial(number, isolated=False)
        if not is_retried_after_exit(cause, trial.failures):
            t.update(culprits=t.state.culprits | {trial.run_id})
            trials.fail(t, number, cause, f"{trial.failures} workers died running this trial; {details}")
        return
    for number, trial in running.items():
        t.set_trial(number, isolated=are_isolated(cause, trial.failures))


def give_up_worker(t: Transition, name: str, reason: str) -> None:
    """Stop using a device whose worker cannot be killed."""
    _forget_worker(t, name)
    quarantine(t, name, reason)


def quarantine(t: Transition, name: str, reason: str) -> None:
    """Stop using a device and move its trials to another one; abort the agent if there is no other."""
    device = t.set_device(name, quarantined=True, restart_at=None)
    visible, log = device.device.visible, f"full log: {device.log}"
    hint = f"nvidia-smi -i {visible}   ({log})" if visible else log
    if all(other.quarantined for other in t.devices.values()):
        shutdown.abort(t, KtoSweepError(reason, hint=hint))
        return
    t.say(f"{name} is no longer used: {reason}\n  Hint: {hint}")
    slots.requeue_from(t, name)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
