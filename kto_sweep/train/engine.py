"""K trials trained at once on one frozen base model.

Each slot holds one trial: its adapters, optimizer, schedule, data order and step count. `step` takes one
optimizer step in every slot that has one left, all their tokens in the same forwards. A slot can be left and
joined at any time while the others go on; their numbers do not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kto_sweep.train.decoder import Decoder
from kto_sweep.train.limit import Limit, until_it_fits
from kto_sweep.train.lora import AdapterSpec, AdapterStack, find_targets
from kto_sweep.train.measured import StepResult
from kto_sweep.train.optim import Knobs, OptimizerState, Outcome, SlotAdamW
from kto_sweep.train.pack import Item, ship
from kto_sweep.train.score import score
from kto_sweep.train.slot import ReferencedRows, Slot, SlotState
from kto_sweep.train.step import StepSums, add_gradients, step_items
from kto_sweep.trial import Trial

UNSPLIT = Limit()

SCORING_LIMIT = Limit(tokens=32768)
"""Forwards without gradients hold little beside keys and values: enough tokens to fill any device."""


@dataclass(frozen=True)
class LogRatios:
    """What a slot has learned about the held-out rows: one number a row, in their order, nats."""

    matched: NDArray[np.float64]
    """log pi(y|x) - log pi_ref(y|x)"""
    mismatched: NDArray[np.float64]
    """log pi(y'|x) - log pi_ref(y'|x)"""


class Engine:
    """`slots` places for trials on one model and one set of rows."""

    def __init__(
        self,
        decoder: Decoder,
        train: ReferencedRows,
        held_out: ReferencedRows,
        *,
        slots: int = 1,
        limit: Limit = UNSPLIT,
        scoring_limit: Limit = SCORING_LIMIT,
    ) -> None:
        self.decoder = decoder
        self.train = train
        self.held_out = held_out
        self.limit = limit
        """Of a training forward; halved when memory runs out."""
        self.scoring_limit = scoring_limit
        self._slots: list[Slot | None] = [None] * slots
        self._adapters: AdapterStack | None = None
        self._optimizer: SlotAdamW | None = None

    def join(self, slot: int, trial: Trial, state: SlotState | None = None) -> None:
        """Begin `trial` in an empty slot, or go on from `state`.

        Raises UsageError when the model has no layers of the names in lora_targets, torch.OutOfMemoryError
        when there is no room for its adapters; the other slots are as they were.
        """
        if self._slots[slot] is not None:
            raise ValueError(f"slot {slot} has a trial already")
        joined = Slot(trial, self.train)
        find_targets(self.decoder.model, joined.spec.targets)  # before anything of the others is taken apart
        if self._adapters is None or not self._adapters.fits(joined.spec):
            self._rebuild(len(self._slots), joined.spec)
        if state is None:
            self._stack.start(slot, joined.spec)
            self._adamw.start(slot, trial.optimizer)
        else:
            joined.go_on(self.train, state)
            self._put(slot, joined, state)
        self._slots[slot] = joined

    def leave(self, slot: int) -> None:
        """Empty `slot`."""
        self._slots[slot] = None
        self._stack.stop(slot)

    def close(self) -> None:
        """Leave the model as it was before the engine."""
        if self._adapters is not None:
            self._adapters.detach()
        self.decoder.release()

    @property
    def slots(self) -> int:
        """Places for trials, empty ones included."""
        return len(self._slots)

    def resize(self, slots: int) -> None:
        """Have another number of slots; those that are lost must be empty.

        Raises torch.OutOfMemoryError, and has as many as before, when so many do not fit.
        """
        if any(held is not None for held in self._slots[slots:]):
            raise ValueError(f"a slot from {slots} on still has a trial")
        if self._adapters is not None:
            self._rebuild(slots)
        self._slots = (self._slots + [None] * slots)[:slots]

    def total_steps(self, slot: int) -> int:
        """Optimizer steps that the slot's trial takes in all."""
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
        Raises ValueError when no slot has a step left; torch.OutOfMemoryError when one example does not fit:
        then nothing has changed, and the step can be begun again.
        """
        active = {slot: held for slot, held in enumerate(self._slots) if held is not None and not held.done}
        if not active:
            raise ValueError("no slot has a step left")
        batches = [held.next_batch(slot, self.train) for slot, held in active.items()]

        def gradients(limit: Limit) -> StepSums:
            self._stack.clear_grads()
            return add_gradients(self.decoder, self._stack, batches, limit)

        sums, self.limit = until_it_fits(gradients, self.limit, step_items(batches))
        outcome = self._update(active)
        known = {batch.slot: active[batch.slot].advance(batch, len(self.train.rows)) for batch in batches}
        return StepResult(known, sums, outcome)

    def _update(self, active: Mapping[int, Slot]) -> Outcome:
        try:
            outcome = self._adamw.update(self._stack.weights, self._stack.take_grads(), self._knobs(active))
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                "memory ran out half way through an update; the trials' states are lost"
            ) from error
        self._stack.refresh()
        return outcome

    def _knobs(self, active: Mapping[int, Slot]) -> Knobs:
        columns = {
            name: np.zeros(len(self._slots)) for name in ("lr", "weight_decay", "max_grad_norm", "active")
        }
        for slot, held in active.items():
            columns["lr"][slot] = held.lr
            columns["weight_decay"][slot] = held.trial.weight_decay
            columns["max_grad_norm"][slot] = held.trial.max_grad_norm or np.inf
            columns["active"][slot] = 1
        return Knobs(**ship(columns, self.decoder.device, torch.float32))

    def evaluate(self, slot: int) -> LogRatios:
        """How the slot's trial has moved on the held-out rows; without dropout."""
        rows = self.held_out.rows
        items = [Item(row) for row in rows]
        scores, self.scoring_limit = until_it_fits(
            lambda limit: score(self.decoder, rows, limit, self._stack, slot), self.scoring_limit, items
        )
        ratios = scores.cpu().numpy() - self.held_out.reference
        return LogRatios(ratios[:, 0], ratios[:, 1])

    def adapters(self, slot: int) -> tuple[AdapterSpec, dict[str, Tensor]]:
        """What the slot's adapters are, and their weights by layer, copied to the host."""
        return self._held(slot).spec, self._stack.tensors(slot)

    def state(self, slot: int) -> SlotState:
        """Everything that the slot's trial needs to go on elsewhere, copied to the host."""
        held = self._held(slot)
        optimizer = self._adamw.state(slot)
        rows = {"weights": self._stack.weights[slot], "first": optimizer.first, "second": optimizer.second}
        tensors = {
            f"{kind}/{name}": tensor
            for kind, row in rows.items()
            for name, tensor in self._stack.layout.take(
                row.to("cpu", copy=True), self._stack.names(held.spec), held.spec.rank
            ).items()
        }
        return SlotState(held.step, held.examples, tensors, optimizer.updates)

    def _put(self, slot: int, held: Slot, state: SlotState) -> None:
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
        """Adapters and optimizer anew, with room for all that is there and for `more`.

        The old ones go first, by way of the host: device memory never holds both. Raises
        torch.OutOfMemoryError, and leaves what was there, when the new ones do not fit.
        """
        held = {slot: trial for slot, trial in enumerate(self._slots) if trial is not None}
        states = {slot: self.state(slot) for slot in held}
        specs = [trial.spec for trial in held.values()]
        try:
            self._lay_out(slots, [*specs, *more], states)
        except torch.OutOfMemoryError as error:
            problem = str(error)
        else:
            return
        self._lay_out(len(self._slots), specs, states)
        raise torch.OutOfMemoryError(problem)

    def _lay_out(self, slots: int, specs: Sequence[AdapterSpec], states: Mapping[int, SlotState]) -> None:
        if self._adapters is not None:
            self._adapters.detach()
        self._adapters = self._optimizer = None
        if not specs:
            return  # the next trial that joins says what is needed
        rank = max(spec.rank for spec in specs)
        stack = AdapterStack(self.decoder.model, slots, rank, {spec.targets for spec in specs})
        self._adapters = stack
        self._optimizer = SlotAdamW(slots, stack.layout.parameters, stack.device)
        for slot, state in states.items():
            self._put(slot, self._held(slot), state)

    def _held(self, slot: int) -> Slot:
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
