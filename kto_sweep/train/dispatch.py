"""What a worker does next: trials that fit join the present ones, others wait until it can switch.

mailbox --> line --> co-trainer (many at once) | trl trainer (one alone) --> mailbox
"""

import gc
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.home import Home
from kto_sweep.protocol import Done, SetConcurrency, StartTrial
from kto_sweep.train.cotrain import CoTrainer
from kto_sweep.train.course import ground_of
from kto_sweep.train.device import is_broken, is_out_of_memory, out_of_memory
from kto_sweep.train.line import Line
from kto_sweep.train.mailbox import Mailbox, MailReport, failure
from kto_sweep.train.request import Request
from kto_sweep.train.result import TrainResult
from kto_sweep.train.room import Growth, Room
from kto_sweep.train.session import Session
from kto_sweep.train.support import NotPackableError
from kto_sweep.train.trl_crew import train_in_ranks
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class _Order:
    """A trial that waits."""

    request: Request
    alone: bool
    """Only TRL's trainer can train it."""


class Dispatcher:
    """Trains what the mailbox orders until nobody is left to work for."""

    def __init__(self, home: Home, mailbox: Mailbox, devices: int = 1) -> None:
        """`devices`: that each trial is trained on; several mean one process each, and TRL's trainer."""
        self._home = home
        self._devices = devices
        self._session = Session(home)
        self._mailbox = mailbox
        self._line: Line[_Order] = Line()
        self._trainer: CoTrainer | None = None
        self._growths: dict[object, Growth] = {}
        """How many trials at once are worth it, by what those have in common."""
        self._room = Room(1, "")
        """What the supervisor was told of it last."""

    def run(self) -> None:
        """Work until the supervisor is gone and every trial has been put away.

        Raises what is not the fault of one trial.
        """
        while not (self._mailbox.closed and self._idle):
            for start in self._mailbox.starts(wait=self._idle):
                self._accept(start)
            self._turn()
        self._close_trainer()

    @property
    def _idle(self) -> bool:
        return not self._line and (self._trainer is None or self._trainer.idle)

    def _accept(self, start: StartTrial) -> None:
        run_id = start.run_id
        try:
            trial = Trial.from_config(start.config)
        except Exception as error:
            self._mailbox.send(failure(run_id, error))
            return
        request = Request(
            run_id,
            trial,
            Path(start.out_dir),
            MailReport(self._mailbox, run_id),
            lambda: self._mailbox.should_stop(run_id),
            start.logged_steps,
        )
        self._line.add(_Order(request, alone=trial.full_finetune or self._devices > 1))

    def _turn(self) -> None:
        """Let in who fits, and take one step; when nobody is left, it is the turn of who waits longest."""
        for order in self._line.leaving(lambda order: order.request.should_stop()):
            self._tell(order.request.run_id, TrainResult({}, 0, stopped=True))
        trainer = self._trainer
        if trainer is not None:
            for order in self._line.fitting(lambda o: not o.alone and trainer.fits(o.request.trial)):
                trainer.start(order.request)
        if trainer is not None and not trainer.idle:
            for ending in trainer.step():
                self._tell(ending.run_id, ending.outcome)
            self._tell_room(trainer.room)
        elif self._line:
            self._switch(self._line.first())

    def _switch(self, order: _Order) -> None:
        """Train `order`, with another model or other data than before."""
        self._close_trainer()
        if order.alone:
            self._train_alone(order.request)
            return
        request = order.request
        # Other trials than those before begin with as many at once as there are slots for.
        growth = self._growths.setdefault(ground_of(request.trial), Growth(self._room.slots))
        try:
            self._trainer = self._session.cotrainer(request.trial, growth)
        except NotPackableError as reason:
            request.report.note(f"{reason.message}; trained with TRL's trainer instead")
            self._train_alone(request)
        except Exception as error:
            self._give_up(request, error)
        else:
            self._trainer.start(request)

    def _train_alone(self, request: Request) -> None:
        try:
            if self._devices > 1:
                result = train_in_ranks(request, self._home, self._devices)
            else:
                result = self._session.train_with_trl(request)
        except Exception as error:
            self._give_up(request, error)
        else:
            self._tell(request.run_id, result)

    def _give_up(self, request: Request, error: Exception) -> None:
        if is_broken(error):
            raise error
        self._tell(request.run_id, out_of_memory(str(error)) if is_out_of_memory(error) else error)

    def _close_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
            self._trainer = None
            gc.collect()  # what comes next may need all the memory

    def _tell_room(self, room: Room) -> None:
        if room != self._room:
            self._room = room
            self._mailbox.send(SetConcurrency(room.slots, room.reason))

    def _tell(self, run_id: str, outcome: TrainResult | Exception) -> None:
        if isinstance(outcome, Exception):
            self._mailbox.send(failure(run_id, outcome))
        else:
            self._mailbox.send(Done(run_id, dict(outcome.summary), outcome.steps, outcome.stopped))
