"""How an agent ends: on a signal, when time is up, after an error, or without wandb's service. Pure.

WORKING --signal, time is up--> SHUTTING_DOWN --idle--> ENDED (done)
   |                                  '--second signal, grace time over--> ENDED (killed)
   |--error--> ABORTING --runs closed, or ABORT_SECONDS over--> ENDED (error)
   '--wandb's service exits-> SERVICE_LOST --no signal within SIGNAL_SECONDS--> ENDED (restart)
                                    '--signal, and the workers have saved their work--> ENDED (killed)
"""

from kto_sweep.agent import trial_lifecycle as trials
from kto_sweep.agent.actions import EndService, EndWorker, RequestStop
from kto_sweep.agent.events import (
    DiskFull,
    Event,
    RunClosed,
    RunNotOpened,
    RunOpened,
    ServiceGone,
    SignalReceived,
    Tick,
    WorkerExited,
    WorkerMessage,
)
from kto_sweep.agent.state import AgentOutcome, Phase, TrialStatus
from kto_sweep.agent.transition import Transition
from kto_sweep.errors import KtoSweepError
from kto_sweep.protocol import Done, Failed

SIGNAL_SECONDS = 2.0
"""After wandb's service exits, the agent waits this long for a signal that may have been sent to both."""
ABORT_SECONDS = 20.0
"""Time to close runs when an error ends the agent."""


def on_signal(t: Transition, number: int) -> None:
    """Handle SIGINT or SIGTERM: the first one requeues the trials, the second one kills the workers."""
    if t.state.stats.interrupted:
        kill(t)
        return
    t.update_stats(interrupted=number)
    t.say("stopping trials after their current step; press Ctrl-C again to stop now")
    if t.state.phase is Phase.WORKING:
        begin(t)


def begin(t: Transition) -> None:
    """Stop every trial after its current step, within the grace time."""
    t.update(phase=Phase.SHUTTING_DOWN, deadline=t.now + t.state.settings.grace)
    _attach_requeued(t)
    for number in list(t.slots):
        slot = t.slots[number]
        if slot.trial is not None and slot.has(TrialStatus.RUNNING):
            t.do(RequestStop(slot.device, slot.trial.run_id))
        else:
            clear(t, number)


def clear(t: Transition, number: int) -> None:
    """Requeue a slot's trial that is not running, and close the slot."""
    slot = t.slots[number]
    if slot.has(TrialStatus.READY):
        trials.preempt(t, number)
    elif slot.has(TrialStatus.QUEUED):
        trials.drop(t, number)
    if t.slots[number].trial is None and not slot.closed:
        t.close_slot(number)


def end_if_idle(t: Transition) -> None:
    """End the agent if nothing is left to do."""
    if t.state.phase in (Phase.WORKING, Phase.SHUTTING_DOWN) and t.state.is_idle:
        _end(t, AgentOutcome.DONE)


def kill(t: Transition) -> None:
    """End now: kill the workers; their trials can continue later from their last checkpoints."""
    for number, slot in list(t.slots.items()):
        if slot.has(TrialStatus.QUEUED):
            trials.drop(t, number)
    for name, device in list(t.devices.items()):
        if device.worker:
            t.do(EndWorker(name, at_once=True))
    _end(t, AgentOutcome.KILLED)


def _attach_requeued(t: Transition) -> None:
    """Give each open trial without a slot a closed one, so that its run can be closed."""
    first = next(iter(t.devices))
    for trial in t.state.requeued:
        if trial.is_open:
            t.add_slot(first, trial=trial, closed=True)
    t.update(requeued=())


def _end(t: Transition, outcome: AgentOutcome) -> None:
    t.update(phase=Phase.ENDED, outcome=outcome)


# After an error.


def abort(t: Transition, error: Exception) -> None:
    """End the workers and requeue as many open runs as possible within ABORT_SECONDS."""
    t.update(phase=Phase.ABORTING, deadline=t.now + ABORT_SECONDS, error=error)
    _attach_requeued(t)
    for number in list(t.slots):
        if not t.slots[number].closed:
            t.close_slot(number)
        if t.slots[number].has(TrialStatus.QUEUED):
            trials.drop(t, number)
        elif t.slots[number].has(TrialStatus.READY, TrialStatus.RUNNING):
            trials.preempt(t, number)
    _end_abort(t)


def while_aborting(t: Transition, event: Event) -> None:
    """Wait for the runs that are being opened and closed."""
    match event:
        case RunClosed():
            trials.on_closed(t, event)
        case RunOpened():
            trials.on_opened(t, event)
            trials.preempt(t, event.slot)
        case RunNotOpened() | DiskFull() if t.slots[event.slot].has(TrialStatus.OPENING):
            trials.drop(t, event.slot)
        case ServiceGone() | SignalReceived():
            _end(t, AgentOutcome.ERROR)  # nothing can be sent, or the user does not want to wait
            return
    _end_abort(t)


def _end_abort(t: Transition) -> None:
    if t.now > t.state.deadline or all(slot.trial is None for slot in t.slots.values()):
        _end(t, AgentOutcome.ERROR)


# Without wandb's service.


def lose_service(t: Transition, why: str = "wandb's service process (wandb-core) exited") -> None:
    """Handle the exit of wandb's service: another process must continue, unless this one should end too.

    Nothing can be sent to the server after that. A job's end or a machine's shutdown signals all processes at
    once, so a signal to this process may still arrive.
    """
    stopping = t.state.phase is Phase.SHUTTING_DOWN
    deadline = t.state.deadline if stopping else t.now + SIGNAL_SECONDS
    error = KtoSweepError(why, hint="kto-sweep agent   (continues from the trials' last checkpoints)")
    t.update(phase=Phase.SERVICE_LOST, deadline=deadline, error=error)
    _end_without_service(t)


def follow_server(t: Transition, url: str) -> None:
    """Handle a new address of the embedded server, which wandb's service cannot follow."""
    t.do(EndService())
    lose_service(t, f"the server moved to {url}")


def without_service(t: Transition, event: Event) -> None:
    """Wait for a signal, then for the workers to save their work."""
    match event:
        case SignalReceived(number):
            if t.state.stats.interrupted:
                kill(t)
                return
            on_signal(t, number)
            _stop_workers(t)
        case Tick(time_left) if time_left <= 0 and not _is_stopping(t):
            t.update_stats(time_is_up=True)
            _stop_workers(t)
        case WorkerMessage(device, _, Done() | Failed() as message):
            slot = t.slot_of(message.run_id, device)
            if slot is not None and slot.has(TrialStatus.RUNNING):
                t.set_trial(slot.number, status=TrialStatus.READY)
        case WorkerExited(device):
            for slot in t.running(device):
                t.set_trial(slot.number, status=TrialStatus.READY)
    _end_without_service(t)


def _stop_workers(t: Transition) -> None:
    t.update(deadline=t.now + t.state.settings.grace)
    for slot in t.slots.values():
        if slot.trial is not None and slot.has(TrialStatus.RUNNING):
            t.do(RequestStop(slot.device, slot.trial.run_id))


def _is_stopping(t: Transition) -> bool:
    return bool(t.state.stats.interrupted) or t.state.stats.time_is_up


def _end_without_service(t: Transition) -> None:
    if _is_stopping(t):
        if t.now > t.state.deadline or not any(slot.has(TrialStatus.RUNNING) for slot in t.slots.values()):
            _end(t, AgentOutcome.KILLED)
    elif t.now > t.state.deadline:
        _end(t, AgentOutcome.RESTART)
