"""Which trial trains where: fills slots, opens and dispatches their trials, closes idle slots. Pure."""

from kto_sweep.agent import shutdown
from kto_sweep.agent import trial_lifecycle as trials
from kto_sweep.agent.events import Commands, RunNotOpened, RunOpened
from kto_sweep.agent.state import Assignment, DeviceState, Phase, Slot, TrialStatus
from kto_sweep.agent.transition import Transition
from kto_sweep.protocol import SetConcurrency
from kto_sweep.text import duration

MAX_FAILED_TRIALS = 2
"""A slot closes after this many consecutive trials whose runs could not be opened in any attempt."""


def fill(t: Transition, number: int, *, soon: bool = False) -> None:
    """Give a free slot a requeued trial, or ask the server for a new one; close it if it gets none."""
    slot = t.slots[number]
    if slot.closed or slot.trial is not None:
        return
    if t.state.requeued and t.state.phase is Phase.WORKING:
        first, *rest = t.state.requeued
        if first.is_open:
            t.update(requeued=tuple(rest))
            t.set_slot(number, trial=first)
        elif not t.state.is_draining and _within_budget(t, slot, first):
            t.update(requeued=tuple(rest))
            trials.assign(t, number, first)
    device = t.devices[slot.device]
    if t.slots[number].trial is not None:
        t.heartbeat(number)
    elif t.state.is_draining or t.over_capacity(slot.device):
        t.close_slot(number)
    elif device.ready:
        t.heartbeat(number, soon=soon)


def close_idle(t: Transition) -> None:
    """Close the slots without a trial if the agent is draining."""
    if not t.state.is_draining:
        return
    if not any(trial.is_open for trial in t.state.requeued):
        t.update(requeued=())  # the next agent will find the trials of dead agents again
    for number in list(t.slots):
        fill(t, number)


def on_commands(t: Transition, event: Commands) -> None:
    """Carry out the server's commands."""
    number = event.slot
    if event.run is not None and t.slots[number].trial is None:
        slot = t.slots[number]
        accepted = not slot.closed and not t.state.is_draining and not t.has(event.run.run_id)
        if accepted and _within_budget(t, slot, event.run):
            trials.assign(t, number, event.run)
        close_idle(t)  # the server sends a trial that is not started here again
    for run_id in event.stop:
        stop_trial(t, run_id, t.slots[number].device, answered=number)
    if event.exit and t.slots[number].trial is None and not t.slots[number].closed:
        t.set_device(t.slots[number].device, no_trials_left=True)
        t.close_slot(number)
    if not t.slots[number].closed:
        t.heartbeat(number)


def stop_trial(t: Transition, run_id: str, device: str | None = None, *, answered: int | None = None) -> None:
    """Stop a trial on request of the server, and fill the slot that it leaves at once.

    `answered`: the slot whose heartbeat the server answered; it asks again anyway.
    """
    slot = t.slot_of(run_id, device)
    trials.request_stop(t, run_id, device)
    if slot is not None and slot.number != answered:
        fill(t, slot.number)


def _within_budget(t: Transition, slot: Slot, trial: Assignment) -> bool:
    """Whether there is time for a trial; if not, the agent starts draining."""
    forecast, left = t.state.forecast, t.state.time_left
    if forecast is None:
        return True
    others = sum(other.trial is not None for other in t.slots_of(slot.device))
    seconds = forecast.seconds(trial.config, trial.trial, trial.done_steps, others + 1)
    # A trial of unknown length may start: when time is up, it is requeued and not lost.
    if left > 0 if seconds is None else seconds <= left:
        return True
    needed = "" if seconds is None else f", needs {duration(seconds)}"
    t.update_stats(out_of_time=True)
    reason = f"{duration(max(0.0, left))} left{needed}"
    t.say(f"run {trial.run_id} was not started ({reason}); not starting new trials")
    return False


def on_run_opened(t: Transition, event: RunOpened) -> None:
    """Handle a trial whose run is open now."""
    trials.on_opened(t, event)
    slot = t.slots[event.slot]
    assert slot.trial is not None
    if slot.trial.problem:
        trials.fail_bad_config(t, event.slot)
    elif t.state.phase is Phase.SHUTTING_DOWN:
        trials.preempt(t, event.slot)
    elif t.devices[slot.device].quarantined:
        requeue_from(t, slot.device)


def on_run_not_opened(t: Transition, event: RunNotOpened) -> None:
    """Keep the trial for another attempt, or fill its slot again; close a slot in which no run opens."""
    trials.on_not_opened(t, event)
    slot = t.slots[event.slot]
    if slot.trial is not None:
        clear_if_shutting_down(t, event.slot)
    elif slot.failed_openings < MAX_FAILED_TRIALS * t.state.settings.max_openings:
        fill(t, event.slot)
    else:
        attempts = f"{slot.failed_openings} consecutive attempts to open a run failed"
        t.say(f"{slot.device}: {attempts}; closing the slot")
        t.close_slot(event.slot)


def clear_if_shutting_down(t: Transition, slot: int) -> None:
    """While the agent shuts down, requeue a trial that its worker no longer has."""
    if t.state.phase is Phase.SHUTTING_DOWN:
        shutdown.clear(t, slot)


def dispatch_ready(t: Transition) -> None:
    """Open the runs and start the trials that are due, isolated ones first."""
    pending = [
        slot
        for slot in t.slots.values()
        if slot.has(TrialStatus.QUEUED, TrialStatus.READY, TrialStatus.CLOSING)
    ]
    for slot in sorted(pending, key=_priority, reverse=True):
        trial, number = slot.trial, slot.number
        assert trial is not None
        if trial.status is TrialStatus.CLOSING and t.now > trial.close_by:
            trials.abandon(t, number)
            fill(t, number)
        elif trial.status is TrialStatus.QUEUED and t.state.stats.server_lost:
            trials.drop(t, number)
            fill(t, number)
        elif _may_start(t, slot, trial):
            if trial.status is TrialStatus.QUEUED and not t.is_closing(trial.run_id):
                trials.open_run(t, number)
            elif trial.status is TrialStatus.READY and t.devices[slot.device].ready:
                trials.dispatch(t, number)


def _priority(slot: Slot) -> tuple[bool, int]:
    """Isolated trials come first, those with more failures before the others."""
    return (slot.trial.isolated, slot.trial.failures) if slot.trial is not None else (False, 0)


def _may_start(t: Transition, slot: Slot, trial: Assignment) -> bool:
    """Whether the trial's next attempt is due and no isolated trial is running on the device."""
    isolated = any(other.trial is not None and other.trial.isolated for other in t.running(slot.device))
    return t.now >= trial.not_before and not isolated


def set_concurrency(t: Transition, name: str, message: SetConcurrency) -> None:
    """Adjust the number of slots to what the worker can use; a surplus slot closes when its trial ends."""
    if message.reason:
        t.say(f"{name}: {message.reason}")
    device = t.set_device(name, target_slots=message.slots)
    if not (t.state.is_draining or device.no_trials_left or device.quarantined):
        for _ in range(message.slots - len(t.open_slots(name))):
            fill(t, t.add_slot(name).number)
    for slot in t.open_slots(name):
        if slot.trial is None and t.over_capacity(name):
            t.close_slot(slot.number)


def requeue_from(t: Transition, name: str) -> None:
    """Move the open trials of a quarantined device to another one."""
    for slot in t.slots_of(name):
        if slot.trial is not None and slot.trial.is_open:
            isolated = t.set_trial(slot.number, isolated=True)
            # These come before the trials of dead agents, which a draining agent leaves to the next one.
            requeued = sorted((*t.state.requeued, isolated), key=lambda trial: not trial.is_open)
            t.update(requeued=tuple(requeued))
            t.set_slot(slot.number, trial=None)
        if not slot.closed:
            t.close_slot(slot.number)
    pending = sum(trial.is_open for trial in t.state.requeued)
    healthy = [device for device in t.devices.values() if not device.quarantined]
    if pending and not any(t.open_slots(device.device.name) for device in healthy):
        _reopen(t, healthy[0], pending)  # the healthy devices had nothing left to do
    for number in list(t.slots):
        fill(t, number)


def _reopen(t: Transition, device: DeviceState, trials_waiting: int) -> None:
    name = device.device.name
    t.set_device(name, no_trials_left=False)
    for _ in range(min(trials_waiting, len(t.slots_of(name)))):
        t.add_slot(name)
    t.start_worker(name)
