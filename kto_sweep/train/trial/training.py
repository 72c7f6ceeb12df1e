"""One trial's training, in whichever slot it is: its rows, its checkpoints, its end.

<folder>/adapter                       the adapters of the last step, as PEFT loads them; or
<folder>/model                         all weights, after full fine-tuning
<folder>/best                          those of the best evaluation (lowest eval/common_loss)
<folder>/lineage.json                  where they come from
<folder>/checkpoint/last.safetensors   the trial's state; without tensors once it is finished
<folder>/checkpoint/rows.jsonl         every row logged so far
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
from kto_sweep.fingerprints import DATA, EVAL_DATA, MODEL
from kto_sweep.parameter_types import describe_sources
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.device import device_facts
from kto_sweep.train.packed.engine import LogRatios
from kto_sweep.train.packed.lora import AdapterSpec
from kto_sweep.train.packed.slot import ReferenceRows, SlotState
from kto_sweep.train.trial.adapters import save_adapters
from kto_sweep.train.trial.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointPolicy,
    Clock,
    Identity,
    load_checkpoint,
    save_checkpoint,
)
from kto_sweep.train.trial.evaluate import evaluate
from kto_sweep.train.trial.lineage import Lineage, data_info, earlier_fingerprints, model_info
from kto_sweep.train.trial.metrics_log import MetricsLog
from kto_sweep.train.trial.pending_writes import PendingWrites
from kto_sweep.train.trial.request import TrainResult, TrialRequest
from kto_sweep.train.trl.ranks import Ranks
from kto_sweep.trial import Trial

DIGITS = 16
"""Of a fingerprint in a run's summary."""


@dataclass(frozen=True)
class SharedInputs:
    """The model and data that trials trained together share."""

    base: LoadedBase
    data: TrainingData
    model_hash: str
    rows_hash: str

    @property
    def summary(self) -> dict[str, str]:
        """Short hashes for the run's summary: they differ if trials of a sweep used other data or weights."""
        dtype = str(self.base.dtype).removeprefix("torch.")
        hashes = {DATA: self.rows_hash[:DIGITS], MODEL: f"{dtype}:{self.model_hash[:DIGITS]}"}
        return hashes | ({EVAL_DATA: self.data.eval_fingerprint} if self.data.eval_fingerprint else {})


def sharing_key(trial: Trial) -> tuple[object, ...]:
    """Equal for trials that can be trained together: what decides their model and rows."""
    model = (trial.base_model, trial.effective_quantization)
    return (*model, trial.dataset, trial.eval_dataset, trial.max_length, trial.eval_fraction)


class SlotBackend(Protocol):
    """What takes the optimizer steps: an Engine, or TRL's trainer as an engine with one slot."""

    train: ReferenceRows
    held_out: ReferenceRows

    def total_steps(self, slot: int) -> int:
        """Optimizer steps of the slot's trial in all."""

    def examples(self, slot: int) -> int:
        """Examples that the slot's trial has trained on."""

    def evaluate(self, slot: int) -> LogRatios:
        """Log-ratios of the slot's trial on the held-out rows."""

    def state(self, slot: int) -> SlotState:
        """Everything that the slot's trial needs to continue elsewhere, on the host."""

    def adapters(self, slot: int) -> tuple[AdapterSpec, Mapping[str, Tensor]]:
        """The slot's adapters, and their weights by layer, copied to the host."""


def _require_same_inputs(request: TrialRequest, inputs: SharedInputs) -> None:
    """Raise TrialFailure when the run's earlier steps were trained on other rows or weights."""
    before = earlier_fingerprints(request.folder / "lineage.json") if request.logged else {}
    for what, now, words in (
        ("rows", inputs.rows_hash, f"the rows of {describe_sources(request.trial.dataset)} have"),
        ("model", inputs.model_hash, f"the weights of {request.trial.base_model} have"),
    ):
        if before.get(what, now) != now:
            raise TrialFailure(
                FailureCause.BAD_DATA,
                f"{words} changed since the first {request.logged} steps of this run",
                hint="restore them, or delete the run: the sweep then assigns its trial as a new run",
            )


class TrialTraining:
    """One trial: it is attached to a slot, steps, may be detached and attached again, and ends.

    Files are copied in the caller's thread and written by PendingWrites; each end is a Future of its result.
    """

    def __init__(
        self, request: TrialRequest, inputs: SharedInputs, clock: Clock, *, inline: bool = False
    ) -> None:
        """Continues from the checkpoint in the trial's folder, if there is one. `inline`: see PendingWrites.

        Raises OSError for a folder that cannot be written, TrialFailure when the data or the model have
        changed since the steps that were logged before.
        """
        _require_same_inputs(request, inputs)  # before any file of the run changes
        self.request = request
        self.trial = request.trial
        self.report = request.report
        self.slot: int | None = None
        """In the engine; None while detached."""
        # The device runs ahead of the log by one step (see CoTrainer.step), hence two counts.
        self.launched = 0
        """Steps that the engine has launched."""
        self.steps = 0
        """Steps whose row is logged."""
        self.finished = False
        """An earlier process has finished it."""
        self.state: SlotState | None = None
        """To continue from when it is attached."""
        self._save_detached: Callable[[], None] | None = None
        """Writes the weights of a detached trial, if it ends while it waits."""
        self._inputs = inputs
        self._clock = clock
        self._total = 0
        self._seconds = self._attached_at = 0.0
        self._best: float | None = None
        folder = request.folder / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "last.safetensors"
        self._metrics = MetricsLog(folder / "rows.jsonl", self.report, self.trial, inputs.data.counts)
        self._policy = CheckpointPolicy(self._path, self.report.note, clock)
        self._writes = PendingWrites(inline=inline)
        self._checkpoint_write: Future[None] | None = None
        """The last checkpoint, possibly still being written."""
        provenance = request.provenance.with_inputs(
            model_info(inputs.base, self.trial, inputs.model_hash),
            data_info(inputs.data, inputs.rows_hash),
            device_facts(Ranks.current().size),
        )
        self._lineage = Lineage(request.folder / "lineage.json", self.trial, provenance)
        self.report.loaded(provenance)
        self._restore()

    def _restore(self) -> None:
        try:
            checkpoint = self._usable_checkpoint()
        except CheckpointError as error:
            # Start over rather than fail: all rows are logged again with the same numbers.
            self.report.note(f"the checkpoint in {self._path.parent} is not used: {error.message}")
            checkpoint = None
        if checkpoint is None:
            for note in self._inputs.data.notes:
                self.report.note(note)
            return
        self.state, self.finished = checkpoint.state, checkpoint.finished
        self.launched = self.steps = checkpoint.state.step
        self._seconds = checkpoint.seconds
        # If `best` was deleted, the next evaluation is the best again and writes it.
        self._best = checkpoint.best if (self.request.folder / "best").is_dir() else None
        self.report.note(f"resuming after step {self.steps}")

    def _usable_checkpoint(self) -> Checkpoint | None:
        checkpoint = load_checkpoint(self._path, self._identity)
        if checkpoint is None:
            return None
        # A crash can leave the checkpoint newer than the rows: their steps would be missing from the curves.
        if not self._metrics.has(checkpoint.state.step):
            raise CheckpointError("the rows beside it are not complete")
        if checkpoint.finished and not (self.request.folder / self._product).is_dir():
            raise CheckpointError("the finished trial's weights are missing")
        return checkpoint

    def attach(self, backend: SlotBackend, slot: int) -> None:
        """Start or continue in `slot`, which the trial has just joined."""
        self.slot, self.state, self._save_detached = slot, None, None
        self._attached_at = self._clock()
        if not self._total:  # not after a detach: the plan was reported and the rows are in the file
            self._total = backend.total_steps(slot)
            self._metrics.resume(self._total, self.steps, self.request.logged)
            self._lineage.write()

    def detach(self, backend: SlotBackend) -> None:
        """Leave the slot, to continue in another one later."""
        # Both copies now: the slot is given to another trial.
        self.state = backend.state(self._attached_slot)
        self._save_detached = self._saving(backend, self._product)
        # The wait for memory may be long: a crash in it must not cost the steps since the last checkpoint.
        self._checkpoint_write = self._writes.put(self._checkpointing(self.state))
        self.leave()

    def evaluates(self, step: int) -> bool:
        """Whether the trial is evaluated after `step`."""
        due = step % self.trial.eval_every(self._total) == 0 or step == self._total
        return due and bool(self._inputs.data.eval)

    def evaluation(self, backend: SlotBackend) -> dict[str, float]:
        """All `eval/*` metrics."""
        ratios = backend.evaluate(self._attached_slot)
        return evaluate(
            ratios.matched,
            ratios.mismatched,
            backend.held_out.rows.desirable.tolist(),
            beta=self.trial.beta,
            weights=self.trial.weights(*backend.train.counts),
            loss_type=self.trial.loss_type,
        )

    def log(self, step: int, values: Mapping[str, float], backend: SlotBackend) -> None:
        """Log the row of `step`, save the best adapters. Raises TrialFailure on divergence."""
        self._writes.check()  # a full disk fails the trial here, not hours later at its end
        self.steps = step
        self._metrics.log(step, values)
        loss = values.get("eval/common_loss", math.nan)
        # Adapters are copied now and written by the thread: the next step changes the weights in place.
        if math.isfinite(loss) and (self._best is None or loss < self._best):
            self._writes.put(self._saving(backend, "best"))
            self._best = loss

    def is_due(self, step: int) -> bool:
        """Whether `step` needs more than its row: an evaluation, a checkpoint, or the trial's end."""
        return step == self._total or self.evaluates(step) or self._is_checkpoint_due(after_evaluation=False)

    def checkpoint_if_due(self, backend: SlotBackend) -> None:
        """Write a checkpoint if it is time for one."""
        if self._is_checkpoint_due(after_evaluation=self.evaluates(self.steps)):
            self._checkpoint_write = self._writes.put(self._checkpointing(backend.state(self._attached_slot)))

    def _is_checkpoint_due(self, *, after_evaluation: bool) -> bool:
        # One at a time: a slow disk must not queue copies of the weights.
        busy = self._checkpoint_write is not None and not self._checkpoint_write.done()
        return not busy and self._policy.is_due(after_evaluation=after_evaluation)

    def _checkpointing(self, state: SlotState) -> Callable[[], None]:
        """A function that writes a checkpoint of `state` and the present rows."""
        # Made now, in the caller's thread; only the returned function runs in the writer's.
        rows, checkpoint = self._metrics.syncing(), self._checkpoint(state)
        return lambda: self._policy.write(checkpoint, rows)

    def finish(self, backend: SlotBackend) -> Future[TrainResult]:
        """Save the weights of a trial that has taken all its steps."""
        save, sync_rows = self._saving(backend, self._product), self._metrics.syncing()
        # Without tensors: a finished trial is not continued, and its adapters are saved anyway.
        state = SlotState(self.steps, backend.examples(self._attached_slot), {}, 0.0)
        checkpoint = self._checkpoint(state, finished=True)
        result = self._result(state.examples, stopped=False)

        def write() -> TrainResult:
            # The checkpoint last: it marks the trial as finished, so all else must be on the disk.
            save()
            sync_rows()
            save_checkpoint(self._path, checkpoint)
            return self._with_lineage(result)

        return self._writes.put(write)

    def finish_again(self) -> Future[TrainResult]:
        """The result of a trial that an earlier process has finished."""
        assert self.state is not None
        # Reports the rows that the earlier process could not deliver.
        self._metrics.resume(self.steps, self.steps, self.request.logged)
        result = self._result(self.state.examples, stopped=False)
        return self._writes.put(lambda: self._with_lineage(result))

    def stop(self, backend: SlotBackend) -> Future[TrainResult]:
        """Save a trial that was told to stop, so that it can continue later."""
        jobs: list[Callable[[], None]]
        if self.slot is None:
            # Detached: its checkpoint is written. Never attached: there is nothing to save.
            jobs = [self._save_detached] if self._save_detached else []
            result = self._result(self.state.examples if self.state else 0, stopped=True)
        else:
            jobs = [
                self._checkpointing(backend.state(self.slot)),
                self._saving(backend, self._product),
            ]
            result = self._result(backend.examples(self.slot), stopped=True)

        def write() -> TrainResult:
            for job in jobs:
                job()
            return self._with_lineage(result)

        return self._writes.put(write)

    def fail(self, error: Exception) -> Future[None]:
        """Record why the trial failed; a diverged one needs no checkpoint."""

        def write() -> None:
            with contextlib.suppress(OSError):  # the disk may be why it failed
                self._lineage.write(error)
            if isinstance(error, TrialFailure) and error.cause is FailureCause.DIVERGED:
                self._path.unlink(missing_ok=True)  # continuing would only diverge again

        return self._writes.put_last(write)

    def leave(self) -> None:
        """Have no slot from now on; the time in it is counted."""
        self._seconds, self.slot = self._seconds_taken, None

    def close(self) -> None:
        """Leave the slot, and close the files once they are written."""
        self.leave()
        self._writes.close()
        self._metrics.close()

    @property
    def _seconds_taken(self) -> float:
        """Seconds in slots, in earlier processes too."""
        return self._seconds + (self._clock() - self._attached_at if self.slot is not None else 0.0)

    def _result(self, examples: int, *, stopped: bool) -> TrainResult:
        # Later keys win: rows have no such names, and the hashes must be those of this process.
        taken = {"trial/seconds": self._seconds_taken, "trial/examples": examples}
        # Not of a stopped trial: what it still does may change the judgement.
        health = {} if stopped else self._metrics.conclude()
        summary = {**self._metrics.summary, **taken, **self._inputs.summary, **health}
        return TrainResult(summary, self.steps, stopped)

    def _with_lineage(self, result: TrainResult) -> TrainResult:
        self._lineage.write(result)
        return result

    def _checkpoint(self, state: SlotState, *, finished: bool = False) -> Checkpoint:
        return Checkpoint(self._identity, state, self._seconds_taken, self._best, finished)

    @property
    def _identity(self) -> Identity:
        return Identity(self.trial.to_config(), self._inputs.rows_hash, self._inputs.model_hash)

    @property
    def _product(self) -> str:
        """The folder for the trained weights."""
        return "model" if self.trial.full_finetune else "adapter"

    def _saving(self, backend: SlotBackend, name: str) -> Callable[[], None]:
        """A function that writes the present weights to the folder `name`."""
        spec, tensors = backend.adapters(self._attached_slot)
        base = self._inputs.base.model.name_or_path
        return lambda: save_adapters(self.request.folder / name, spec, tensors, base)

    @property
    def _attached_slot(self) -> int:
        if self.slot is None:
            raise ValueError(f"{self.request.run_id} is in no slot")
        return self.slot
