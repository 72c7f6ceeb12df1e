"""One trial's way through its training, whichever slot it is in: its rows, its checkpoints, its end.

<folder>/adapter                       the adapters of the last step, as PEFT loads them; or
<folder>/model                         all weights, after a full fine-tuning
<folder>/best                          those of the best evaluation (lowest eval/common_loss)
<folder>/lineage.json                  where they come from
<folder>/checkpoint/last.safetensors   what the trial needs to go on; only a mark when it is finished
<folder>/checkpoint/rows.jsonl         every row reported so far
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kto_sweep.data.dataset import TrainingData
from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.fingerprints import DATA, MODEL
from kto_sweep.train.adapter_files import save_adapters
from kto_sweep.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    Identity,
    load_checkpoint,
    save_checkpoint,
)
from kto_sweep.train.engine import LogRatios
from kto_sweep.train.evaluate import evaluate
from kto_sweep.train.keeper import Clock, Keeper
from kto_sweep.train.lineage import Lineage, earlier_fingerprints
from kto_sweep.train.logbook import Logbook
from kto_sweep.train.lora import AdapterSpec
from kto_sweep.train.models import LoadedBase
from kto_sweep.train.request import Request
from kto_sweep.train.result import TrainResult
from kto_sweep.train.slot import ReferencedRows, SlotState
from kto_sweep.train.watch import Watch
from kto_sweep.train.writer import Writer
from kto_sweep.trial import Trial

DIGITS = 16
"""Of a fingerprint in a run's summary."""


@dataclass(frozen=True)
class Ground:
    """What trials that are trained together have in common."""

    base: LoadedBase
    data: TrainingData
    model_hash: str
    rows_hash: str

    @property
    def summary(self) -> dict[str, str]:
        """What tells the trials of one sweep that were trained on something else from the others."""
        dtype = str(self.base.dtype).removeprefix("torch.")
        return {DATA: self.rows_hash[:DIGITS], MODEL: f"{dtype}:{self.model_hash[:DIGITS]}"}


def ground_of(trial: Trial) -> tuple[object, ...]:
    """What trials that are trained together have in common."""
    model = (trial.base_model, trial.effective_quantization)
    return (*model, trial.dataset, trial.max_length, trial.eval_fraction)


class Seats(Protocol):
    """Who takes the steps: an Engine, or TRL's trainer in one of its own."""

    train: ReferencedRows
    held_out: ReferencedRows

    def total_steps(self, slot: int) -> int:
        """Optimizer steps that the slot's trial takes in all."""

    def examples(self, slot: int) -> int:
        """Examples that the slot's trial has trained on."""

    def evaluate(self, slot: int) -> LogRatios:
        """How the slot's trial has moved on the held-out rows."""

    def state(self, slot: int) -> SlotState:
        """Everything that the slot's trial needs to go on elsewhere, on the host."""

    def adapters(self, slot: int) -> tuple[AdapterSpec, Mapping[str, Tensor]]:
        """What the slot's adapters are, and their weights by layer, copied to the host."""


def _refuse_others(request: Request, ground: Ground) -> None:
    """Have no run whose first steps were trained on one thing and the others on another."""
    before = earlier_fingerprints(request.folder / "lineage.json") if request.logged else {}
    for what, now, words in (
        ("rows", ground.rows_hash, f"the rows of {request.trial.dataset} have"),
        ("model", ground.model_hash, f"the weights of {request.trial.base_model} have"),
    ):
        if before.get(what, now) != now:
            raise TrialFailure(
                FailureCause.BAD_DATA,
                f"{words} changed since the first {request.logged} steps of this run",
                hint="put back what was there, or delete the run: its trial is then handed out as a new one",
            )


class Course:
    """One trial on its way: it sits down in a slot, steps, may stand up and sit down again, and ends.

    What goes on the disk is copied and written by a Writer; what ends the trial is a Future of its result.
    """

    def __init__(self, request: Request, ground: Ground, clock: Clock, *, inline: bool = False) -> None:
        """Goes on from the checkpoint in the trial's folder, if there is one of it. `inline`: see Writer.

        Raises OSError when the folder cannot be written, TrialFailure when the data or the model are not
        those of the steps that were logged before.
        """
        _refuse_others(request, ground)
        self.request = request
        self.trial = request.trial
        self.report = request.report
        self.slot: int | None = None
        """Where in the engine it is, None while it is not."""
        self.launched = 0
        """Steps that the engine has been told to take."""
        self.steps = 0
        """Steps whose row is written."""
        self.finished = False
        """An earlier process has done it all."""
        self.state: SlotState | None = None
        """What it goes on from when it sits down."""
        self._stood_up: Callable[[], None] | None = None
        """What writes the weights of a trial that waits to sit down again, if it ends waiting."""
        self._ground = ground
        self._clock = clock
        self._total = 0
        self._seconds = self._since = 0.0
        self._best: float | None = None
        folder = request.folder / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "last.safetensors"
        self._logbook = Logbook(folder / "rows.jsonl", Watch(self.report, self.trial, ground.data.counts))
        self._keeper = Keeper(self._path, self.report.note, clock)
        self._writer = Writer(inline=inline)
        self._keeping: Future[None] | None = None
        """The last checkpoint, perhaps still being written."""
        self._lineage = Lineage(
            request.folder / "lineage.json",
            self.trial,
            ground.base,
            ground.data,
            {"model": ground.model_hash, "rows": ground.rows_hash},
        )
        self._find_place()

    def _find_place(self) -> None:
        try:
            found = self._usable_checkpoint()
        except CheckpointError as error:
            self.report.note(f"the checkpoint in {self._path.parent} is not used: {error.message}")
            found = None
        if found is None:
            for note in self._ground.data.notes:
                self.report.note(note)
            return
        self.state, self.finished = found.state, found.finished
        self.launched = self.steps = found.state.step
        self._seconds = found.seconds
        self._best = found.best if (self.request.folder / "best").is_dir() else None
        self.report.note(f"going on after step {self.steps}")

    def _usable_checkpoint(self) -> Checkpoint | None:
        found = load_checkpoint(self._path, self._identity)
        if found is not None and not self._logbook.has(found.state.step):
            raise CheckpointError("the rows beside it are not complete")
        if found is not None and found.finished and not (self.request.folder / self._product).is_dir():
            raise CheckpointError("what the finished trial has learned is gone")
        return found

    def sit_down(self, engine: Seats, slot: int) -> None:
        """Begin, or go on, in `slot`, which the trial has just joined."""
        self.slot, self.state, self._stood_up = slot, None, None
        self._since = self._clock()
        if not self._total:
            self._total = engine.total_steps(slot)
            self._logbook.go_on(self._total, self.steps, self.request.logged)
            self._lineage.write()

    def stand_up(self, engine: Seats) -> None:
        """Leave the slot, to go on in another one later."""
        self.state, self._stood_up = engine.state(self._place), self._saving(engine, self._product)
        self._keeping = self._writer.put(self._checkpointing(self.state))
        self.leave()

    def evaluates(self, step: int) -> bool:
        """Whether the trial is evaluated after `step`."""
        due = step % self.trial.eval_every(self._total) == 0 or step == self._total
        return due and bool(self._ground.data.eval)

    def evaluation(self, engine: Seats) -> dict[str, float]:
        """All `eval/*` metrics."""
        ratios = engine.evaluate(self._place)
        return evaluate(
            ratios.matched,
            ratios.mismatched,
            [row.desirable for row in engine.held_out.rows],
            beta=self.trial.beta,
            weights=self.trial.weights(*engine.train.counts),
            loss_type=self.trial.loss_type,
        )

    def write(self, step: int, values: Mapping[str, float], engine: Seats) -> None:
        """Report a step; save the adapters if they are the best. Raises TrialFailure when it has diverged."""
        self._writer.check()
        self.steps = step
        self._logbook.write(step, values)
        found = values.get("eval/common_loss", math.nan)
        if math.isfinite(found) and (self._best is None or found < self._best):
            self._writer.put(self._saving(engine, "best"))
            self._best = found

    def is_due(self, step: int) -> bool:
        """Whether more is to be done after `step` than to write its row."""
        return step == self._total or self.evaluates(step) or self._is_keeping_due(early=False)

    def keep(self, engine: Seats) -> None:
        """Write a checkpoint if it is time for one."""
        if self._is_keeping_due(early=self.evaluates(self.steps)):
            self._keeping = self._writer.put(self._checkpointing(engine.state(self._place)))

    def _is_keeping_due(self, *, early: bool) -> bool:
        busy = self._keeping is not None and not self._keeping.done()
        return not busy and self._keeper.is_due(early=early)

    def _checkpointing(self, state: SlotState) -> Callable[[], None]:
        """What writes a checkpoint of now."""
        rows, checkpoint = self._logbook.syncing(), self._checkpoint(state)
        return lambda: self._keeper.keep(checkpoint, rows)

    def finish(self, engine: Seats) -> Future[TrainResult]:
        """Save the adapters of a trial that has taken all its steps."""
        save, rows = self._saving(engine, self._product), self._logbook.syncing()
        state = SlotState(self.steps, engine.examples(self._place), {}, 0.0)
        checkpoint = self._checkpoint(state, finished=True)
        result = self._result(state.examples, stopped=False)

        def write() -> TrainResult:
            save()
            rows()
            save_checkpoint(self._path, checkpoint)
            return self._told(result)

        return self._writer.put(write)

    def finish_again(self) -> Future[TrainResult]:
        """The result of a trial that an earlier process has finished."""
        assert self.state is not None
        self._logbook.go_on(self.steps, self.steps, self.request.logged)
        result = self._result(self.state.examples, stopped=False)
        return self._writer.put(lambda: self._told(result))

    def stop(self, engine: Seats) -> Future[TrainResult]:
        """Save a trial that is told to end, so that it can go on another time."""
        jobs: list[Callable[[], None]]
        if self.slot is None:
            jobs = [self._stood_up] if self._stood_up else []
            result = self._result(self.state.examples if self.state else 0, stopped=True)
        else:
            jobs = [self._checkpointing(engine.state(self._place)), self._saving(engine, self._product)]
            result = self._result(engine.examples(self._place), stopped=True)

        def write() -> TrainResult:
            for job in jobs:
                job()
            return self._told(result)

        return self._writer.put(write)

    def fail(self, error: Exception) -> Future[None]:
        """Put down why the trial cannot go on; one that has diverged needs no checkpoint."""

        def write() -> None:
            with contextlib.suppress(OSError):
                self._lineage.write(error)
            if isinstance(error, TrialFailure) and error.cause is FailureCause.DIVERGED:
                self._path.unlink(missing_ok=True)

        return self._writer.put_last(write)

    def leave(self) -> None:
        """Have no slot any more; the time in it has been counted."""
        self._seconds, self.slot = self._taken, None

    def close(self) -> None:
        """Leave the slot and close the files, once they are written."""
        self.leave()
        self._writer.close()
        self._logbook.close()

    @property
    def _taken(self) -> float:
        """Seconds in slots, in earlier processes too."""
        return self._seconds + (self._clock() - self._since if self.slot is not None else 0.0)

    def _result(self, examples: int, *, stopped: bool) -> TrainResult:
        taken = {"trial/seconds": self._taken, "trial/examples": examples}
        return TrainResult({**self._logbook.summary, **taken, **self._ground.summary}, self.steps, stopped)

    def _told(self, result: TrainResult) -> TrainResult:
        self._lineage.write(result)
        return result

    def _checkpoint(self, state: SlotState, *, finished: bool = False) -> Checkpoint:
        return Checkpoint(self._identity, state, self._taken, self._best, finished)

    @property
    def _identity(self) -> Identity:
        return Identity(self.trial.to_config(), self._ground.rows_hash, self._ground.model_hash)

    @property
    def _product(self) -> str:
        """Name of the folder that the trained weights end up in."""
        return "model" if self.trial.full_finetune else "adapter"

    def _saving(self, engine: Seats, name: str) -> Callable[[], None]:
        """What writes the weights of now to the folder `name`."""
        spec, tensors = engine.adapters(self._place)
        base = self._ground.base.model.name_or_path
        return lambda: save_adapters(self.request.folder / name, spec, tensors, base)

    @property
    def _place(self) -> int:
        if self.slot is None:
            raise ValueError(f"{self.request.run_id} is in no slot")
        return self.slot
