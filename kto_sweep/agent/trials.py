"""A trial's life at the supervisor: opened, ordered from a worker, heard of, closed.

W&B runs are opened and closed on threads of their own: a server that is slow or gone must not hold up the
other trials.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kto_sweep.agent.blame import is_retried, pause
from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Closed, Events, Opened, ServiceGone, StopAsked
from kto_sweep.agent.presence import OPEN_STATES, ClaimedError, Orphan, Presence, take_over
from kto_sweep.agent.runs import HandedBackError, Objective, ServiceGoneError, TrialRun, is_service_gone
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.tally import FAILURES_IN_A_ROW, Tally
from kto_sweep.alerts import AlertRule
from kto_sweep.errors import KtoSweepError
from kto_sweep.home import Home
from kto_sweep.protocol import (
    Alert,
    Done,
    Failed,
    Metrics,
    Note,
    Planned,
    Preparing,
    StartTrial,
    StopTrial,
    TrialMessage,
)
from kto_sweep.run_record import home_id
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import OWNER
from kto_sweep.wandb_client.private_api import Command, read_run

if TYPE_CHECKING:
    import wandb

OPENINGS = 8
"""Times that it is tried to open a trial's run."""
GIVEN_UP = 2
"""A slot in which so many times that failed, one after another, takes no more trials."""
OPENING_SECONDS = (10.0, 30.0, 60.0, 300.0)
"""Before the second, third and fourth time, and before each later one."""
CLOSE_SECONDS = 10.0
"""How much longer than the server is waited for a run may take to be closed."""


class LetGoError(KtoSweepError):
    """A trial of a dead agent is not ours any more."""


class Trials:
    """The trials that this agent has in its slots, and what became of the others."""

    def __init__(
        self,
        api: "wandb.Api",
        ref: SweepRef,
        home: Home,
        display: Display,
        events: Events,
        tally: Tally,
        presence: Presence,
        *,
        objective: Callable[[], Objective],
        alerts: Sequence[AlertRule],
        local: bool,
        patience: float,
        pauses: bool = False,
        openings: int = OPENINGS,
    ) -> None:
        """`pauses`: a trial that the server stops may be handed out again, by successive halving.

        `openings`: times that it is tried to open a trial's run.
        """
        self._api = api
        self._ref = ref
        self._home = home
        self._home_id = home_id(home)
        self._display = display
        self._events = events
        self._tally = tally
        self._presence = presence
        self._objective = objective
        self._alerts = alerts
        self._local = local
        self._patience = patience
        self._pauses = pauses
        self._openings = openings
        self._closing: dict[str, threading.Thread] = {}
        """The last closing of each run."""
        self._claimed: set[str] = set()
        """Runs that were said to wait for a dead agent's worker."""

    def folder(self, run_id: str) -> Path:
        """Where the trial's files are."""
        return self._home.runs / run_id

    # Opened: a trial that the server chose, or that a dead agent of this home has left.

    def begin(self, slot: Slot, command: Command) -> None:
        """Open the run of the trial that the server chose for `slot`."""
        slot.work = Work(command.run_id, command.config or {})
        self._tally.started += 1
        self.open(slot)

    def adopt(self, slot: Slot, orphan: Orphan) -> None:
        """Go on with a dead agent's trial in `slot`."""
        slot.work = Work(orphan.run_id, orphan.config, orphan=orphan)
        self._tally.started += 1
        self.open(slot)

    def open(self, slot: Slot) -> None:
        """Open the run of the trial in `slot`, for the first time or again."""
        work = slot.work
        assert work is not None
        work.opening = True
        self._background(lambda: self._try_to_open(slot, work))

    def _try_to_open(self, slot: Slot, work: Work) -> None:
        orphan = work.orphan
        try:
            run = self._open(slot, work) if orphan is None else self._take_over(slot, work, orphan)
            self._events.put(Opened(slot, work, run))
        except Exception as error:  # wandb has no one class for what can go wrong
            self._events.put(ServiceGone() if is_service_gone(error) else Opened(slot, work, error))

    def _open(self, slot: Slot, work: Work, *, adopt: bool = False) -> TrialRun:
        if work.run_id in self._closing:  # the server may hand it out again before wandb lets go
            self._closing[work.run_id].join()
        return TrialRun.open(
            self._ref,
            work.run_id,
            work.config,
            self.folder(work.run_id),
            objective=self._objective(),
            alerts=self._alerts,
            local=self._local,
            on_stop=lambda: self._events.put(StopAsked(work.run_id)),
            home=self._home_id,
            agent=self._presence.token,
            device=slot.station.device.name,
            patience=self._patience,
            adopt=adopt,
        )

    def _take_over(self, slot: Slot, work: Work, orphan: Orphan) -> TrialRun:
        if reason := self._not_ours(work.run_id):
            replace(orphan.record, agent="").write(orphan.folder)  # nobody need ask again
            raise LetGoError(reason)
        if not take_over(orphan, self._presence.token):
            raise LetGoError("another agent of this box has it")
        return self._open(slot, work, adopt=True)

    def _not_ours(self, run_id: str) -> str:
        """Why the server would not have us go on with a run; empty when it would."""
        found = read_run(self._api, self._ref, run_id)
        if found is None:
            return "it was deleted on the server"
        state, config, _ = found
        if state not in OPEN_STATES:
            return f"the server has it as {state}"
        return "" if config.get(OWNER) == self._home_id else "another box has begun it since"

    def opened(self, event: Opened) -> None:
        """Take in how that went; a trial whose run could not be opened stays in its slot for a while.

        One that was dropped would be handed out again, and another time, until the server gives it up.
        """
        slot, work = event.slot, event.work
        work.opening = False
        if isinstance(event.outcome, TrialRun):
            work.run = event.outcome
            slot.failed_openings = 0
            self._display.started(work.run_id, work.run.name, work.config, slot.station.device.name)
        elif isinstance(event.outcome, LetGoError):
            self._display.say(f"run {work.run_id} is left alone: {event.outcome.message}")
            self.drop_unopened(slot)
        elif isinstance(event.outcome, ClaimedError):  # that passes: it is tried again at once
            if work.run_id not in self._claimed:
                self._claimed.add(work.run_id)
                self._display.say(f"run {work.run_id} waits: {event.outcome.message}")
        else:
            self._not_opened(slot, work, event.outcome)

    def _not_opened(self, slot: Slot, work: Work, error: Exception) -> None:
        slot.failed_openings += 1
        wait = OPENING_SECONDS[min(slot.failed_openings, len(OPENING_SECONDS)) - 1]
        slot.not_before = work.not_before = time.monotonic() + wait
        told = f"run {work.run_id} was not begun: {error}"
        if isinstance(error, HandedBackError) or slot.failed_openings % self._openings == 0:
            self._display.say(told)
            self.drop_unopened(slot)
        else:
            self._display.say(f"{told}; it is tried again in {wait:.0f} s")

    def can_open(self, slot: Slot) -> bool:
        """Whether it is of use to try another trial in `slot`."""
        return slot.failed_openings < GIVEN_UP * self._openings

    def drop_unopened(self, slot: Slot) -> bool:
        """Let go of a trial in `slot` whose run could not be opened, if there is one; whether there was."""
        if slot.work is None or not slot.work.is_unopened:
            return False
        slot.work = None
        self._tally.started -= 1
        return True

    # Ordered.

    def order(self, slot: Slot) -> None:
        """Give the trial in `slot` to its worker."""
        work, worker = slot.work, slot.station.worker
        assert work is not None
        assert work.run is not None
        assert worker is not None
        work.ordered = True
        worker.send(
            StartTrial(work.run_id, work.config, str(self.folder(work.run_id)), work.run.logged_steps)
        )

    def order_stop(self, station: Station, run_id: str) -> None:
        """Have the worker end a trial after the step it is in; one that waits for a worker ends at once."""
        slot = station.holder(run_id)
        if slot is None or slot.work is None:
            return
        if slot.work.ordered:
            if station.worker is not None:
                station.worker.send(StopTrial(run_id))
        elif slot.work.run is not None and not slot.work.closing:
            self._stop(slot, {})
        elif self.drop_unopened(slot):
            self._display.say(f"run {run_id} is stopped")

    def hear(self, slot: Slot, message: TrialMessage) -> None:
        """Take in what a worker says of the trial in `slot`. Raises ServiceGoneError."""
        try:
            self._hear(slot, message)
        except Exception as error:
            if is_service_gone(error):
                raise ServiceGoneError from error
            raise

    def _hear(self, slot: Slot, message: TrialMessage) -> None:
        work = slot.work
        if work is None or work.run is None or work.closing:
            return
        run = work.run
        match message:
            case Preparing(run_id, what, done, total):
                self._display.preparing(run_id, what, done, total)
            case Planned(run_id, total_steps, done_steps):
                run.plan(total_steps, done_steps)
                self._display.planned(run_id, total_steps, done_steps)
            case Metrics(run_id, step, values):
                run.metrics(step, values)
                work.passed(step)
                self._display.progress(run_id, step, values)
            case Note(_, text):
                run.note(text)
                self._display.note(text)
            case Alert(_, title, text):
                run.alert(title, text)
            case Done():
                self._done(slot, message)
            case Failed(_, cause, text, hint, trace):
                if trace:
                    run.note(trace)
                self.failed(slot, cause, f"{text}\n  Hint: {hint}" if hint else text)

    # Closed.

    def _done(self, slot: Slot, message: Done) -> None:
        display, summary = self._display, message.summary
        if not message.stopped:
            self._tally.note_finished()
            self._close(
                slot,
                lambda run: run.succeed(summary),
                lambda: display.ended(message.run_id, "finished", summary),
            )
        elif self._tally.is_leaving:
            self.put_back(slot)
        else:
            self._stop(slot, summary)

    def _stop(self, slot: Slot, summary: Mapping[str, float | int | str]) -> None:
        """Close the trial in `slot` that the server asked to stop."""
        assert slot.work is not None
        run_id = slot.work.run_id
        self._tally.stopped += 1
        how = "paused" if self._pauses else "stopped"
        self._close(
            slot,
            lambda run: run.stop(summary, for_good=not self._pauses),
            lambda: self._display.ended(run_id, how, summary),
        )

    def failed(self, slot: Slot, cause: str, text: str) -> None:
        """Have the trial in `slot` tried again, or close it as failed when that is of no use."""
        work = slot.work
        assert work is not None
        assert work.run is not None
        failures = work.fail_here()
        if not is_retried(cause, failures):
            self.fail(slot, cause, text)
            return
        work.not_before = time.monotonic() + pause(cause, failures)
        work.run.note(f"{cause}: {text}; tried again")
        self._display.say(f"  run {work.run_id}: {cause}: {text}; it is tried again")

    def fail(self, slot: Slot, cause: str, text: str) -> None:
        """Close the trial in `slot` as failed."""
        assert slot.work is not None
        run_id = slot.work.run_id
        self._tally.note_failed()
        self._close(
            slot, lambda run: run.fail(cause, text), lambda: self._display.failed(run_id, cause, text)
        )
        if self._tally.failed_in_a_row == FAILURES_IN_A_ROW:
            self._display.say(f"{FAILURES_IN_A_ROW} trials failed and none succeeded: no more are started")

    def put_back(self, slot: Slot) -> None:
        """Close the trial in `slot` so that the server hands it out again."""
        assert slot.work is not None
        run_id = slot.work.run_id
        self._close(slot, TrialRun.preempt, lambda: self._display.ended(run_id, "put back", {}))

    def _close(self, slot: Slot, how: Callable[[TrialRun], bool], tell: Callable[[], None]) -> None:
        work = slot.work
        assert work is not None
        assert work.run is not None
        work.ordered, work.closing = False, True
        work.close_by = time.monotonic() + self._patience + CLOSE_SECONDS
        run = work.run

        def close() -> None:
            try:
                sent = how(run)
            except Exception as error:
                run.let_go()
                if is_service_gone(error):
                    self._events.put(ServiceGone())
                    return
                sent = False
            self._events.put(Closed(slot, work, sent, tell))

        self._closing[work.run_id] = self._background(close)

    def closed(self, event: Closed) -> None:
        """Take in that a run was closed: its slot is free."""
        if event.slot.work is not event.work:
            return  # it was given up
        event.slot.work = None
        event.tell()
        if event.sent:
            self._tally.sent.append((time.monotonic(), event.work.run_id))
        else:
            self._tally.unsent.append(event.work.run_id)

    def give_up(self, slot: Slot) -> bool:
        """Wait no longer for a run that cannot be closed, if there is one in `slot`; whether there was.

        What the server lacks of it stays on the disk.
        """
        work = slot.work
        if work is None or time.monotonic() <= work.close_by:
            return False
        told = f"  run {work.run_id} has ended; the server has not heard of it"
        self.closed(Closed(slot, work, False, lambda: self._display.say(told)))
        return True

    def _background(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True, name="W&B run")
        thread.start()
        return thread
