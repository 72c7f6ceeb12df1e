"""Measured step times of this machine in one small file, written by workers and read by plans.

A rate belongs to a device, a model's sizes, its quantization and the number of trials trained together. A new
measurement replaces the previous one of the same kind.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from kto_sweep.json_file import write_atomic

FILE = "rates.json"
"""File name in the home."""
FORMAT = 1


@dataclass(frozen=True)
class Rate:
    """The median step time of one kind of training."""

    device: str
    """The driver's name of the GPU, or cpu."""
    model: str
    """`Architecture.key` of the model."""
    quantization: str
    trials: int
    """Number of trials trained together."""
    tokens: float
    """Median prompt and completion tokens of a step, all trials together."""
    seconds: float
    """Median time of a step."""

    @property
    def kind(self) -> tuple[str, str, str, int]:
        """What was measured: a file has one rate of each kind."""
        return self.device, self.model, self.quantization, self.trials


def read_rates(root: Path) -> list[Rate]:
    """The rates in the home `root`; empty when the file is missing or damaged."""
    try:
        content = json.loads((root / FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return []
        return [Rate(**entry) for entry in content["rates"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_rates(root: Path, fresh: Iterable[Rate]) -> None:
    """Add `fresh` to the rates in the home `root`; each replaces the previous one of its kind.

    Errors such as a full disk are ignored and leave the old file.
    """
    kept = {rate.kind: rate for rate in [*read_rates(root), *fresh]}
    text = json.dumps({"format": FORMAT, "rates": [asdict(rate) for rate in kept.values()]}, indent=1)
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        write_atomic(root / FILE, text)
