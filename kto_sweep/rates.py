"""Measured training rates of this box, one small file: written by workers, read by plans.

A rate belongs to a device, the sizes of a model, how its weights are held and the number of trials trained
together. The newest measurement of a kind replaces the one before.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "rates.json"
"""In the home."""
FORMAT = 1


@dataclass(frozen=True)
class Rate:
    """How long steps took."""

    device: str
    """As the driver names it; cpu."""
    model: str
    """The key of its Architecture."""
    quantization: str
    trials: int
    """Trained together."""
    tokens: float
    """Prompt and completion tokens of a step, all trials together: the median."""
    seconds: float
    """Of a step: the median."""

    @property
    def kind(self) -> tuple[str, str, str, int]:
        """What it is a rate of."""
        return self.device, self.model, self.quantization, self.trials


def read_rates(root: Path) -> list[Rate]:
    """The rates in the home `root`; none when there are none, or the file cannot be read."""
    try:
        told = json.loads((root / FILE).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            return []
        return [Rate(**entry) for entry in told["rates"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_rates(root: Path, fresh: Iterable[Rate]) -> None:
    """Put `fresh` beside the rates that are there, each in place of an older one of its kind.

    A disk that is full keeps the old file: a rate is no reason to fail.
    """
    kept = {rate.kind: rate for rate in [*read_rates(root), *fresh]}
    text = json.dumps({"format": FORMAT, "rates": [asdict(rate) for rate in kept.values()]}, indent=1)
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=root, prefix=FILE)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(root / FILE)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
