"""What an optimizer step measured, kept on the device until somebody reads it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kto_sweep.train.loss import needs_reference_point
from kto_sweep.train.optim import Outcome
from kto_sweep.train.step import StepSums


@dataclass(frozen=True)
class Known:
    """What the host knows of a slot's step without asking the device."""

    step: int
    """Optimizer steps done, this one included."""
    learning_rate: float
    epoch: float
    """Passes over the training data, this step included."""
    loss_type: str
    tokens: int
    """Prompt and completion tokens of the batch."""


@dataclass(frozen=True)
class Measured:
    """One slot's step."""

    known: Known
    values: Mapping[str, float]
    """Metrics by name; those of a label that the batch does not have are left out."""
    applied: bool
    """False: the gradient was not finite and the trial stayed as it was."""


class StepResult:
    """One step of an engine; `read` waits for the device, nothing before it does.

    Its numbers are on their way to the host from the start: reading them does not wait for later steps.
    """

    def __init__(self, known: Mapping[int, Known], sums: StepSums, outcome: Outcome) -> None:
        self.known = known
        """By slot, of the slots that took part."""
        self._names = [*vars(sums), "grad_norm", "applied"]
        table = torch.stack([*vars(sums).values(), outcome.grad_norm.double(), outcome.applied.double()])
        self._table = table.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if table.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[int, Measured]:
        """The step's measurements by slot."""
        if self._arrived is not None:
            self._arrived.synchronize()
        columns = dict(zip(self._names, self._table.tolist(), strict=True))
        return {
            slot: _measured(known, {name: column[slot] for name, column in columns.items()})
            for slot, known in self.known.items()
        }


def _measured(known: Known, row: Mapping[str, float]) -> Measured:
    values = {"loss": row["loss"]}
    for side, count in (("chosen", row["desirable"]), ("rejected", row["undesirable"])):
        if count:
            values[f"rewards/{side}"] = row[f"{side}_rewards"] / count
            values[f"logps/{side}"] = row[f"{side}_log_probs"] / count
    if row["desirable"] and row["undesirable"]:
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    if needs_reference_point(known.loss_type):
        values["kl_raw"] = row["mismatched"]
        values["kl"] = 0.0 if row["mismatched"] < 0 else row["mismatched"]  # not max(): it would hide a NaN
    values["grad_norm"] = row["grad_norm"]
    values["learning_rate"] = known.learning_rate
    values["epoch"] = known.epoch
    return Measured(known, values, applied=bool(row["applied"]))
