"""A trial's life at the supervisor: begun, ordered from a worker, heard of, closed."""

from collections.abc import Callable

from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Events, StopAsked
from kto_sweep.agent.link import Command
from kto_sweep.agent.runs import Objective, TrialRun
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.tally import FAILURES_IN_A_ROW, Tally
from kto_sweep.home import Home
from kto_sweep.protocol import (
    Alert,
    Done,
    Failed,
    Metrics,
    Note,
    Planned,
    Preparing,
    Start,
    Stop,
    TrialMessage,
)
from kto_sweep.sweep_ref import SweepRef


class Trials:
    """The trials that this agent has in its slots, and what became of the others."""

    def __init__(
        self,
        ref: SweepRef,
        home: Home,
        display: Display,
        events: Events,
        tally: Tally,
        *,
        objective: Callable[[], Objective],
        local: bool,
    ) -> None:
        self._ref = ref
        self._home = home
        self._display = display
        self._events = events
        self._tally = tally
        self._objective = objective
        self._local = local

    def begin(self, slot: Slot, command: Command) -> None:
        """Open the run of the trial that the server chose for `slot`, and order it."""
        run_id, config, station = command.run_id, command.config or {}, slot.station
        run = TrialRun.open(
            self._ref,
            run_id,
            config,
            self._home.runs / run_id,
            objective=self._objective(),
            local=self._local,
            on_stop=lambda: self._events.put(StopAsked(run_id)),
        )
        slot.work = Work(run_id, config, run)
        self._tally.started += 1
        self._display.started(run_id, run.name, config, station.device.name)
        if station.ready:
            self.order(slot)

    def order(self, slot: Slot) -> None:
        """Give the trial in `slot` to its worker."""
        work, worker = slot.work, slot.station.worker
        assert work is not None
        assert worker is not None
        worker.send(
            Start(work.run_id, work.config, str(self._home.runs / work.run_id), work.run.logged_steps)
        )

    def order_stop(self, station: Station, run_id: str) -> None:
        """Have the worker end a trial after the step it is in."""
        if station.holder(run_id) is not None and station.worker is not None:
            station.worker.send(Stop(run_id))

    def hear(self, slot: Slot, message: TrialMessage) -> bool:
        """Take in what a worker says of the trial in `slot`; whether the trial has ended."""
        assert slot.work is not None
        run = slot.work.run
        match message:
            case Preparing(run_id, what, done, total):
                self._display.preparing(run_id, what, done, total)
            case Planned(run_id, total_steps, done_steps):
                run.plan(total_steps, done_steps)
                self._display.planned(run_id, total_steps, done_steps)
            case Metrics(run_id, step, values):
                run.metrics(step, values)
                self._display.progress(run_id, step, values)
            case Note(_, text):
                run.note(text)
            case Alert(_, title, text):
                run.alert(title, text)
            case Done():
                self._done(slot, message)
            case Failed(_, cause, text, hint, trace):
                if trace:
                    run.note(trace)
                self.fail(slot, cause, f"{text}\n  Hint: {hint}" if hint else text)
        return slot.work is None

    def _done(self, slot: Slot, message: Done) -> None:
        if not message.stopped:
            self._tally.note_finished()
            self._close(slot, lambda run: run.succeed(message.summary))
            self._display.ended(message.run_id, "finished", message.summary)
        elif self._tally.interrupted:
            self.put_back(slot)
            self._display.ended(message.run_id, "put back", message.summary)
        else:
            self._tally.stopped += 1
            self._close(slot, lambda run: run.stop(message.summary))
            self._display.ended(message.run_id, "stopped", message.summary)

    def fail(self, slot: Slot, cause: str, text: str) -> None:
        """Close the trial in `slot` as failed."""
        assert slot.work is not None
        self._tally.note_failed()
        run_id = slot.work.run_id
        self._close(slot, lambda run: run.fail(cause, text))
        self._display.failed(run_id, cause, text)
        if self._tally.failed_in_a_row == FAILURES_IN_A_ROW:
            self._display.say(f"{FAILURES_IN_A_ROW} trials failed and none succeeded: no more are started")

    def put_back(self, slot: Slot) -> None:
        """Close the trial in `slot` so that the server hands it out again."""
        self._close(slot, TrialRun.preempt)

    def _close(self, slot: Slot, how: Callable[[TrialRun], None]) -> None:
        assert slot.work is not None
        work, slot.work = slot.work, None
        how(work.run)
