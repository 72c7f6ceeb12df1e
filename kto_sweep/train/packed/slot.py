"""One slot's trial: its order of rows, its schedule and its counts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor

from kto_sweep.data.keys import hash64
from kto_sweep.data.split import all_batches, total_steps
from kto_sweep.train.packed.lora import AdapterSpec
from kto_sweep.train.packed.optim import lr_factor, warmup_steps
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.step import SlotBatch
from kto_sweep.train.packed.step_result import StepInfo
from kto_sweep.train.reference import Scores
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class ReferenceRows:
    """Rows with the base model's log-probs."""

    rows: PairedRows
    reference: Scores
    """(rows, 2): of the matched and mismatched completions, nats."""

    @property
    def counts(self) -> tuple[int, int]:
        """(desirable, undesirable) rows."""
        desirable = int(self.rows.desirable.sum())
        return desirable, len(self.rows) - desirable


@dataclass(frozen=True)
class SlotState:
    """Everything that a trial needs to continue in any slot of any engine on the same rows."""

    step: int
    """Optimizer steps done."""
    examples: int
    """Examples trained on."""
    tensors: Mapping[str, Tensor]
    """Adapters (`weights/...`) and AdamW's moments (`first/...`, `second/...`) by layer."""
    updates: float
    """Updates that AdamW has applied: steps whose gradient was finite."""


class TrialSlot:
    """The trial in one slot of an engine."""

    def __init__(self, trial: Trial, data: ReferenceRows) -> None:
        self.trial = trial
        self.spec = adapter_spec(trial)
        self.weights = trial.weights(*data.counts)
        self.total_steps = total_steps(len(data.rows), trial.batch_size, trial.epochs, trial.max_steps)
        self.warmup = warmup_steps(self.total_steps, trial.warmup_ratio)
        self.step = 0
        self.examples = 0
        # An iterator, not a list: a long trial has many thousands of batches.
        self._batches = self._order(data, 0)
        self._chosen: list[int] | None = None
        """Rows of a step that is not counted yet: a retry after out of memory takes the same."""

    def _order(self, data: ReferenceRows, done: int) -> Iterator[tuple[int, list[int]]]:
        trial = self.trial
        # The order depends on the seed alone, so a resumed trial only has to skip what it has done.
        batches = all_batches(len(data.rows), trial.batch_size, self.total_steps, trial.seed)
        return islice(batches, done, None)

    def resume(self, data: ReferenceRows, state: SlotState) -> None:
        """Continue after the steps of `state`."""
        self.step, self.examples = state.step, state.examples
        self._batches = self._order(data, state.step)

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.total_steps

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        trial = self.trial
        factor = lr_factor(trial.lr_scheduler, self.step, self.warmup, self.total_steps)
        return trial.learning_rate * factor

    def next_batch(self, slot: int, data: ReferenceRows) -> SlotBatch:
        """The rows of the next step; the same ones until `advance`."""
        if self._chosen is None:
            _, self._chosen = next(self._batches)
        chosen = self._chosen
        scores = data.reference[chosen]  # (batch, 2)
        return SlotBatch(
            slot=slot,
            rows=[data.rows[at] for at in chosen],
            matched=scores[:, 0].tolist(),
            mismatched=scores[:, 1].tolist(),
            beta=self.trial.beta,
            weights=self.weights,
            loss_type=self.trial.loss_type,
            # 0 lets the pack share prompts' beginnings, which dropout makes different.
            noise=self._noise() if self.trial.lora_dropout else 0,
        )

    def _noise(self) -> int:
        """The step's dropout seed: no generator state, so a resumed trial drops the same features."""
        return int(hash64(np.int64(self.trial.seed) ^ hash64(np.int64(self.step)))[0])

    def advance(self, batch: SlotBatch, rows: int) -> StepInfo:
        """Count the step that `batch` took; `rows` is the size of the training set."""
        lr = self.lr  # of this step: counting it moves the schedule on
        self._chosen = None
        self.step += 1
        self.examples += len(batch.rows)  # counted: the last batch of an epoch can be smaller
        return StepInfo(
            step=self.step,
            learning_rate=lr,
            epoch=self.examples / rows,
            loss_type=batch.loss_type,
            # Without the mismatched completions: comparable with what other trainers call tokens.
            tokens=sum(len(row.prompt) + len(row.completion) for row in batch.rows),
        )


def adapter_spec(trial: Trial) -> AdapterSpec:
    """The trial's adapters."""
    return AdapterSpec(
        trial.lora_r, trial.effective_lora_alpha, trial.lora_dropout, trial.lora_targets, trial.seed
    )
