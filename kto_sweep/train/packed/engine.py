"""K trials trained at once on one frozen base model.

Each slot holds one trial: its adapters, optimizer, schedule, data order and step count. `step` takes one
optimizer step in every slot that has one left, with all their tokens in the same forwards. Trials can join
and leave at any time; the other trials' numbers do not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kto_sweep.train.lora_targets import find_targets, shortest_names
from kto_sweep.train.packed.decoder import Decoder
from kto_sweep.train.packed.lora import AdapterSpec, AdapterStack
from kto_sweep.train.packed.microbatch import MicrobatchLimit, retry_on_oom
from kto_sweep.train.packed.optim import OptimizerState, SlotAdamW, StepHyperparameters, UpdateResult
from kto_sweep.train.packed.pack import Item, to_device
from kto_sweep.train.packed.slot import ReferenceRows, SlotState, TrialSlot
from kto_sweep.train.packed.step import StepSums, add_gradients, score, step_items
from kto_sweep.train.packed.step_result import StepResult
from kto_sweep.trial import Trial

UNSPLIT = MicrobatchLimit()

SCORING_LIMIT = MicrobatchLimit(tokens=32768)
"""Forwards without gradients hold little but keys and values: so many tokens keep any device busy."""


@dataclass(frozen=True)
class LogRatios:
    """How a slot's trial differs from the base model on the held-out rows: (rows,) in their order, nats."""

    matched: NDArray[np.float64]
    """log pi(y|x) - log pi_ref(y|x)"""
    mismatched: NDArray[np.float64]
    """log pi(y'|x) - log pi_ref(y'|x)"""


class Engine:
    """Trains up to `slots` trials on one model and one set of rows."""

    def __init__(
        self,
        decoder: Decoder,
        train: ReferenceRows,
        held_out: ReferenceRows,
        *,
        slots: int = 1,
        limit: MicrobatchLimit = UNSPLIT,
        scoring_limit: MicrobatchLimit = SCORING_LIMIT,
    ) -> None:
        self.decoder = decoder
        self.train = train
        self.held_out = held_out
        self.limit = limit
        """Size of a training forward; halved when memory runs out."""
        self.scoring_limit = scoring_limit
        self._slots: list[TrialSlot | None] = [None] * slots
        # Allocated when the first trial joins: its rank and layers decide their size.
        self._adapters: AdapterStack | None = None
        self._optimizer: SlotAdamW | None = None

    def join(self, slot: int, trial: Trial, state: SlotState | None = None) -> None:
        """Start `trial` in an empty slot, or continue it from `state`.

        Raises UsageError when the model has no layers of the names in lora_targets, torch.OutOfMemoryError
        when its adapters do not fit; the other slots are then unchanged.
        """
        if self._slots[slot] is not None:
            raise ValueError(f"slot {slot} has a trial already")
        joined = TrialSlot(trial, self.train)
        find_targets(self.decoder.model, joined.spec.targets)  # raises before anything changes
        if self._adapters is None or not self._adapters.fits(joined.spec):
            self._rebuild(len(self._slots), joined.spec)
        if state is None:
            self._stack.start(slot, joined.spec)
            self._adamw.start(slot, trial.optimizer)
        else:
            joined.resume(self.train, state)
            self._put(slot, joined, state)
        self._slots[slot] = joined

    def leave(self, slot: int) -> None:
        """Empty `slot`."""
        self._slots[slot] = None
        self._stack.stop(slot)

    def close(self) -> None:
        """Restore the model."""
        if self._adapters is not None:
            self._adapters.detach()
        self.decoder.release()

    @property
    def slots(self) -> int:
        """Number of slots, empty ones included."""
        return len(self._slots)

    def resize(self, slots: int) -> None:
        """Change the number of slots; removed ones must be empty.

        Raises torch.OutOfMemoryError when so many do not fit; nothing has changed then.
        """
        if any(held is not None for held in self._slots[slots:]):
            raise ValueError(f"a removed slot (from {slots}) has a trial")
        if self._adapters is not None:
            self._rebuild(slots)
        self._slots = (self._slots + [None] * slots)[:slots]

    def total_steps(self, slot: int) -> int:
        """Optimizer steps of the slot's trial in all."""
        return self._held(slot).total_steps

    def examples(self, slot: int) -> int:
        """Examples that the slot's trial has trained on."""
        return self._held(slot).examples

    def done(self, slot: int) -> bool:
        """Whether the slot's trial has taken all its steps."""
        return self._held(slot).done

    def step(self) -> StepResult:
        """One optimizer step of every slot that has one left; nothing is read back from the device.

        A forward that does not fit in memory is split, with the same numbers; see `limit`.
        Raises ValueError when no slot has a step left, torch.OutOfMemoryError when one example does not fit;
        nothing has changed then, and the step can be retried.
        """
        active = {slot: held for slot, held in enumerate(self._slots) if held is not None and not held.done}
        if not active:
            raise ValueError("no slot has a step left")
        batches = [held.next_batch(slot, self.train) for slot, held in active.items()]

        def gradients(limit: MicrobatchLimit) -> StepSums:
            self._stack.clear_grads()  # an attempt that ran out of memory has left some
            return add_gradients(self.decoder, self._stack, batches, limit)

        sums, self.limit = retry_on_oom(gradients, self.limit, step_items(batches))
        update = self._update(active)
        # Only now are the steps counted: until the update is done, the same batches can be taken again.
        info = {batch.slot: active[batch.slot].advance(batch, len(self.train.rows)) for batch in batches}
        return StepResult(info, sums, update)

    def _update(self, active: Mapping[int, TrialSlot]) -> UpdateResult:
        try:
            update = self._adamw.update(
                self._stack.weights, self._stack.take_grads(), self._hyperparameters(active)
            )
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                "memory ran out during an update: the trials' states are lost"  # moments may be half changed
            ) from error
        self._stack.refresh()  # the next forward, perhaps an evaluation, must use the new weights
        return update

    def _hyperparameters(self, active: Mapping[int, TrialSlot]) -> StepHyperparameters:
        """One (slots,) tensor of each, in one copy to the device."""
        columns = {
            name: np.zeros(len(self._slots)) for name in ("lr", "weight_decay", "max_grad_norm", "active")
        }
        for slot, held in active.items():
            columns["lr"][slot] = held.lr
            columns["weight_decay"][slot] = held.trial.weight_decay
            columns["max_grad_norm"][slot] = held.trial.max_grad_norm or np.inf  # 0: no clipping
            columns["active"][slot] = 1
        return StepHyperparameters(**to_device(columns, self.decoder.device, torch.float32))

    def evaluate(self, slot: int) -> LogRatios:
        """Log-ratios of the slot's trial on the held-out rows; without dropout."""
        rows = self.held_out.rows
        items = [Item(row) for row in rows]
        scores, self.scoring_limit = retry_on_oom(
            lambda limit: score(self.decoder, rows, limit, self._stack, slot), self.scoring_limit, items
        )
        # (rows, 2), float64: the small differences of two sums must not lose digits.
        ratios = scores.cpu().numpy() - self.held_out.reference
        return LogRatios(ratios[:, 0], ratios[:, 1])

    def adapters(self, slot: int) -> tuple[AdapterSpec, dict[str, Tensor]]:
        """The slot's adapters, and their weights by layer in PEFT's shapes, copied to the host."""
        spec, tensors = self._held(slot).spec, self._stack.tensors(slot)
        layers = self._stack.names(spec)
        return replace(spec, targets=shortest_names(self.decoder.model, layers)), tensors

    def state(self, slot: int) -> SlotState:
        """Everything that the slot's trial needs to continue elsewhere, copied to the host."""
        held = self._held(slot)
        optimizer = self._adamw.state(slot)
        # By layer and without padding, so that an engine with another rank or other layers can restore it.
        rows = {"weights": self._stack.weights[slot], "first": optimizer.first, "second": optimizer.second}
        tensors = {
            f"{kind}/{name}": tensor
            for kind, row in rows.items()
            for name, tensor in self._stack.layout.take(
                row.to("cpu", copy=True), self._stack.names(held.spec), held.spec.rank
            ).items()
        }
        return SlotState(held.step, held.examples, tensors, optimizer.updates)

    def _put(self, slot: int, held: TrialSlot, state: SlotState) -> None:
        rows: dict[str, dict[str, Tensor]] = {"weights": {}, "first": {}, "second": {}}
        for key, tensor in state.tensors.items():
            kind, _, name = key.partition("/")
            rows[kind][name] = tensor
        self._stack.start(slot, held.spec, rows["weights"])
        first, second = (
            self._stack.layout.put(rows[kind], self._stack.device) for kind in ("first", "second")
        )
        self._adamw.start(slot, held.trial.optimizer, OptimizerState(state.updates, first, second))

    def _rebuild(self, slots: int, *more: AdapterSpec) -> None:
        """Allocate adapters and optimizer again, for the present trials and for `more`.

        States go through the host, and the old buffers are freed first: device memory never holds both.
        Raises torch.OutOfMemoryError when the new ones do not fit; the old ones are restored then.
        """
        held = {slot: trial for slot, trial in enumerate(self._slots) if trial is not None}
        states = {slot: self.state(slot) for slot in held}  # on the host
        specs = [trial.spec for trial in held.values()]
        try:
            self._lay_out(slots, [*specs, *more], states)
        except torch.OutOfMemoryError as error:
            problem = str(error)  # not the error itself: its traceback holds the new buffers
        else:
            return
        self._lay_out(len(self._slots), specs, states)
        raise torch.OutOfMemoryError(problem)

    def _lay_out(self, slots: int, specs: Sequence[AdapterSpec], states: Mapping[int, SlotState]) -> None:
        if self._adapters is not None:
            self._adapters.detach()
        self._adapters = self._optimizer = None  # frees them before the new ones are allocated
        if not specs:
            return  # the next trial that joins decides the rank and the layers
        # All slots have the largest rank, for grouped products; the rest of a smaller one is zeros.
        rank = max(spec.rank for spec in specs)
        stack = AdapterStack(self.decoder.model, slots, rank, {spec.targets for spec in specs})
        self._adapters = stack
        self._optimizer = SlotAdamW(slots, stack.layout.parameters, stack.device)
        for slot, state in states.items():
            self._put(slot, self._held(slot), state)

    def _held(self, slot: int) -> TrialSlot:
        held = self._slots[slot]
        if held is None:
            raise ValueError(f"slot {slot} is empty")
        return held

    @property
    def _stack(self) -> AdapterStack:
        if self._adapters is None:
            raise ValueError("no trial has joined")
        return self._adapters

    @property
    def _adamw(self) -> SlotAdamW:
        if self._optimizer is None:
            raise ValueError("no trial has joined")
        return self._optimizer
