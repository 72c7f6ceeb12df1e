"""What an optimizer step measured: on the device until it is read, then metrics by slot."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kto_sweep.train.loss import needs_reference_point
from kto_sweep.train.packed.optim import UpdateResult
from kto_sweep.train.packed.step import StepSums


@dataclass(frozen=True)
class StepInfo:
    """What the host knows about a slot's step without asking the device."""

    step: int
    """Optimizer steps done, this one included."""
    learning_rate: float
    epoch: float
    """Passes over the training data, this step included."""
    loss_type: str
    tokens: int
    """Prompt and completion tokens of the batch."""


@dataclass(frozen=True)
class SlotMetrics:
    """One slot's step."""

    info: StepInfo
    values: Mapping[str, float]
    """Metrics by name, without those of a label that the batch does not have."""
    applied: bool
    """False: the gradient was not finite, and the weights did not change."""


class StepResult:
    """One step of an engine. `read` waits for the device, nothing else does."""

    def __init__(self, info: Mapping[int, StepInfo], sums: StepSums, update: UpdateResult) -> None:
        self.info = info
        """By slot, for the slots that took part."""
        self._names = [*vars(sums), "grad_norm", "applied"]
        # One (metrics, slots) table: one copy, and it starts now, so that reading it does not wait for
        # steps that are launched later.
        table = torch.stack([*vars(sums).values(), update.grad_norm.double(), update.applied.double()])
        self._table = table.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if table.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[int, SlotMetrics]:
        """The step's metrics by slot."""
        if self._arrived is not None:
            self._arrived.synchronize()
        columns = dict(zip(self._names, self._table.tolist(), strict=True))
        return {
            slot: _metrics(info, {name: column[slot] for name, column in columns.items()})
            for slot, info in self.info.items()
        }


def _metrics(info: StepInfo, sums: Mapping[str, float]) -> SlotMetrics:
    values = {"loss": sums["loss"]}
    for side, count in (("chosen", sums["desirable"]), ("rejected", sums["undesirable"])):
        if count:
            values[f"rewards/{side}"] = sums[f"{side}_rewards"] / count
            values[f"logps/{side}"] = sums[f"{side}_log_probs"] / count
    if sums["desirable"] and sums["undesirable"]:
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    if needs_reference_point(info.loss_type):
        kl_raw = sums["kl_raw"]
        values["kl_raw"] = kl_raw
        values["kl"] = 0.0 if kl_raw < 0 else kl_raw  # not max(): it would hide a NaN
    values["grad_norm"] = sums["grad_norm"]
    values["learning_rate"] = info.learning_rate
    values["epoch"] = info.epoch
    return SlotMetrics(info, values, applied=bool(sums["applied"]))
