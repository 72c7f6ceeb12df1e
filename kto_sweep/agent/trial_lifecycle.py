"""The life of a trial in its slot: assigned, opened, dispatched to the worker, closed. Pure.

QUEUED --open_run--> OPENING --on_opened--> READY --dispatch--> RUNNING --close--> CLOSING --on_closed-->
   ^                    |                     ^                    |
   '---on_not_opened----'                     '----- a failure ----'
"""

from collections.abc import Mapping

from kto_sweep.agent.actions import (
    CloseRun,
    CompareInputs,
    Dispatch,
    Log,
    OpenRun,
    Record,
    RequestStop,
    ShowEnded,
    ShowStarted,
)
from kto_sweep.agent.events import OpeningFailure, RunClosed, RunNotOpened, RunOpened
from kto_sweep.agent.retry_policy import is_retried, retry_delay
from kto_sweep.agent.state import (
    MAX_CONSECUTIVE_FAILURES,
    Assignment,
    Phase,
    Slot,
    TrialEnd,
    TrialEndKind,
    TrialStatus,
)
from kto_sweep.agent.transition import Transition
from kto_sweep.backoff import Backoff
from kto_sweep.errors import FailureCause
from kto_sweep.protocol import Done, Failed, Metrics, TrialMessage

OPENING = Backoff(first=10.0, factor=3, most=300.0)
"""Delays between attempts to open a run."""
CLOSE_SECONDS = 10.0
"""Closing a run may take this much longer than --patience."""
SPACE_SECONDS = 1.0
"""Interval between checks of a full disk."""


def assign(t: Transition, slot: int, trial: Assignment) -> None:
    """Assign a trial to a slot and open its run."""
    t.set_slot(slot, trial=trial)
    t.update_stats(started=t.state.stats.started + 1)
    if not t.is_closing(trial.run_id):  # the server may send a run again before wandb has closed it
        open_run(t, slot)


def open_run(t: Transition, slot: int) -> None:
    """Open the run of the trial in a slot, for the first time or again."""
    trial = t.set_trial(slot, status=TrialStatus.OPENING)
    t.do(OpenRun(slot, t.slots[slot].device, trial))


def on_opened(t: Transition, event: RunOpened) -> None:
    """Mark the trial ready: its run is open."""
    slot = t.set_slot(event.slot, failed_openings=0)
    trial = t.set_trial(event.slot, status=TrialStatus.READY, logged_step=event.logged_step)
    t.do(ShowStarted(trial.run_id, event.name, trial.config, slot.device))


def on_not_opened(t: Transition, event: RunNotOpened) -> None:
    """Keep the trial in its slot and retry later, unless a retry cannot help.

    If it were dropped at once, the server would send it again and again until it gives up on the trial.
    """
    slot = event.slot
    match event.failure:
        case OpeningFailure.TAKEN:
            t.say(f"run {event.run_id} skipped: {event.reason}")
            drop(t, slot)
        case OpeningFailure.BUSY:
            t.set_trial(slot, status=TrialStatus.QUEUED)
            t.say(f"run {event.run_id} is waiting: {event.reason}", once=f"busy {event.run_id}")
        case _:
            failed = t.slots[slot].failed_openings + 1
            wait = OPENING.delay(failed)
            t.set_slot(slot, failed_openings=failed, ask_after=t.now + wait)
            t.set_trial(slot, status=TrialStatus.QUEUED, not_before=t.now + wait)
            if event.failure is OpeningFailure.GIVEN_BACK or failed % t.state.settings.max_openings == 0:
                t.say(f"run {event.run_id} was not started: {event.reason}")
                drop(t, slot)
            else:
                t.say(f"run {event.run_id} was not started: {event.reason}; next attempt in {wait:.0f} s")


def on_disk_full(t: Transition, slot: int, reason: str) -> None:
    """Let the trial wait for disk space."""
    trial = t.slots[slot].trial
    assert trial is not None
    if trial.status not in (TrialStatus.OPENING, TrialStatus.RUNNING):
        return  # its worker has exited in the meantime
    status = TrialStatus.QUEUED if trial.status is TrialStatus.OPENING else TrialStatus.READY
    t.set_trial(slot, status=status, not_before=t.now + SPACE_SECONDS)
    t.say(f"run {trial.run_id} is waiting for disk space: {reason}", once=f"disk {trial.run_id}")


def drop(t: Transition, slot: int) -> None:
    """Remove a trial whose run is not open from its slot; the server sends it again, here or elsewhere."""
    t.set_slot(slot, trial=None)
    t.update_stats(started=t.state.stats.started - 1)


def dispatch(t: Transition, slot: int) -> None:
    """Give the trial in a slot to its worker."""
    trial = t.set_trial(slot, status=TrialStatus.RUNNING)
    t.do(Dispatch(slot, t.slots[slot].device, trial))


def request_stop(t: Transition, run_id: str, device: str | None = None) -> None:
    """Stop a trial on request of the server: after its current step, or at once if it is not running."""
    slot = t.slot_of(run_id, device)
    if slot is None:
        return
    if slot.has(TrialStatus.RUNNING):
        t.do(RequestStop(slot.device, run_id))
    elif slot.has(TrialStatus.READY):
        stop(t, slot.number, {})
    elif slot.has(TrialStatus.QUEUED):
        drop(t, slot.number)
        t.say(f"run {run_id} stopped")


def on_message(t: Transition, slot: Slot, message: TrialMessage) -> None:
    """Handle a worker's message about the trial in a slot."""
    trial, number = slot.trial, slot.number
    if trial is None or not trial.is_open:
        return  # a late message about a trial that is already closing
    match message:
        case Done():
            _on_done(t, slot, message)
        case Failed(_, cause, text, hint, trace):
            if trace:
                t.do(Log(trial.run_id, trace))
            retry_or_fail(t, number, cause, f"{text}\n  Hint: {hint}" if hint else text)
        case _:
            if isinstance(message, Metrics):
                t.set_slot(number, trial=trial.record_progress(message.step))
            t.forget(f"disk {trial.run_id}")
            t.do(Record(trial.run_id, message))


def _on_done(t: Transition, slot: Slot, message: Done) -> None:
    trial = slot.trial
    assert trial is not None
    # A trial that ended normally clears its device: earlier crashes on it no longer count.
    exits = tuple(earlier for earlier in t.state.worker_exits if earlier.device != slot.device)
    t.set_device(slot.device, idle_exits=0)
    t.update(worker_exits=exits)
    t.do(CompareInputs(trial.trial, message))
    seconds = message.summary.get("trial/seconds")
    if t.state.forecast is not None and not message.stopped and isinstance(seconds, int | float):
        t.update(forecast=t.state.forecast.with_ended_trial(trial.config, message.steps, float(seconds)))
    if not message.stopped:
        t.update_stats(finished=t.state.stats.finished + 1, consecutive_failures=0)
        close(t, slot.number, TrialEnd(TrialEndKind.FINISHED, message.summary))
    elif t.state.phase is Phase.WORKING:
        stop(t, slot.number, message.summary)
    else:
        preempt(t, slot.number)


def retry_or_fail(t: Transition, slot: int, cause: str, text: str) -> None:
    """Retry the trial after a failure, or close it as failed."""
    trial = t.slots[slot].trial
    assert trial is not None
    trial = trial.record_failure()
    t.set_slot(slot, trial=trial)
    if not is_retried(cause, trial.failures):
        fail(t, slot, cause, text)
        return
    t.set_trial(slot, not_before=t.now + retry_delay(cause, trial.failures))
    t.do(Log(trial.run_id, f"{cause}: {text}; retrying"))
    t.say(f"  run {trial.run_id}: {cause}: {text}; retrying")


# Ways to close a trial's run.


def stop(t: Transition, slot: int, summary: Mapping[str, float | int | str]) -> None:
    """Close the trial that the server asked to stop."""
    t.update_stats(stopped=t.state.stats.stopped + 1)
    close(
        t, slot, TrialEnd(TrialEndKind.PAUSED if t.state.settings.pauses else TrialEndKind.STOPPED, summary)
    )


def fail(t: Transition, slot: int, cause: str, text: str) -> None:
    """Close the trial as failed."""
    stats = t.state.stats
    in_a_row = stats.consecutive_failures + (not stats.finished)
    t.update_stats(failed=stats.failed + 1, consecutive_failures=in_a_row)
    close(t, slot, TrialEnd(TrialEndKind.FAILED, {}, cause, text))
    if in_a_row == MAX_CONSECUTIVE_FAILURES > stats.consecutive_failures:
        t.say(f"{MAX_CONSECUTIVE_FAILURES} trials failed and none succeeded: not starting new trials")


def fail_bad_config(t: Transition, slot: int) -> None:
    """Close a trial whose configuration cannot be trained."""
    trial = t.slots[slot].trial
    assert trial is not None
    fail(t, slot, FailureCause.BAD_CONFIG, trial.problem)


def preempt(t: Transition, slot: int) -> None:
    """Close the trial so that the server hands it out again."""
    close(t, slot, TrialEnd(TrialEndKind.PREEMPTED))


def close(t: Transition, slot: int, ending: TrialEnd) -> None:
    """Close the trial's run; its slot is free once the run is closed."""
    close_by = t.now + t.state.settings.patience + CLOSE_SECONDS
    trial = t.set_trial(slot, status=TrialStatus.CLOSING, close_by=close_by, ending=ending)
    t.do(CloseRun(slot, trial.run_id, ending))


def on_closed(t: Transition, event: RunClosed) -> None:
    """Free the slot of a trial whose run is closed."""
    trial = t.slots[event.slot].trial
    if trial is None or trial.run_id != event.run_id or trial.status is not TrialStatus.CLOSING:
        return  # closing it was abandoned
    assert trial.ending is not None
    t.do(ShowEnded(trial.run_id, trial.ending))
    _free(t, event.slot, event.run_id, sent=event.sent)


def abandon(t: Transition, slot: int) -> None:
    """Stop waiting for a run that does not close; data that the server lacks stays on disk."""
    trial = t.slots[slot].trial
    assert trial is not None
    assert trial.ending is not None
    t.do(ShowEnded(trial.run_id, trial.ending))
    t.say(f"  run {trial.run_id} ended, but the server did not confirm it")
    _free(t, slot, trial.run_id, sent=False)


def _free(t: Transition, slot: int, run_id: str, *, sent: bool) -> None:
    t.set_slot(slot, trial=None)
    stats = t.state.stats
    if sent:
        t.update_stats(sent=(*stats.sent, (t.now, run_id)))
    else:
        t.update_stats(unsent=(*stats.unsent, run_id))
