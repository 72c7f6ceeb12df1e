"""Measured step times of this machine in one small file: workers write it, plans read it.

A rate is measured for a device, a model's sizes, its quantization and the number of trials trained together.
It replaces the previous rate of the same kind.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kto_sweep.json_file import parse_json, write_atomic
from kto_sweep.models.architecture import Architecture

FILE = "rates.json"
"""File name in the home."""
FORMAT = 1


@dataclass(frozen=True)
class Rate:
    """The median step time for one device, model, quantization and number of trials."""

    device: str
    """The driver's name of the GPU, or cpu."""
    model: str
    """`Architecture.key` of the model."""
    quantization: str
    trials: int
    """Number of trials trained together."""
    tokens: float
    """Median prompt and completion tokens per step, all trials together."""
    seconds: float
    """Median time per step."""

    @property
    def kind(self) -> tuple[str, str, str, int]:
        """What was measured; a file has one rate of each kind."""
        return self.device, self.model, self.quantization, self.trials


def read_rates(root: Path) -> list[Rate]:
    """The rates in the home `root`; empty if the file is missing or damaged."""
    try:
        content = parse_json((root / FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return []
        return [Rate(**entry) for entry in content["rates"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_rates(root: Path, fresh: Iterable[Rate]) -> None:
    """Add `fresh` to the rates in the home `root`; each replaces the previous rate of its kind.

    Errors such as a full disk are ignored and leave the old file.
    """
    kept = {rate.kind: rate for rate in [*read_rates(root), *fresh]}
    text = json.dumps({"format": FORMAT, "rates": [asdict(rate) for rate in kept.values()]}, indent=1)
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        write_atomic(root / FILE, text)


SETTLING = 3
"""Steps after a change of the number of trials that are not measured."""
WRITTEN_AT = frozenset({10, 50, 250, 1000})
"""Numbers of measured steps after which a rate is written."""


class Throughput:
    """Measures one base model's rate on one device, by the number of trials trained together."""

    def __init__(self, root: Path, device: str, model: str, quantization: str) -> None:
        """`root`: the home. `device`, `model`, `quantization`: as in Rate."""
        self._root = root
        self._key = (device, model, quantization)
        self._steps: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self._trials = self._since = 0

    @classmethod
    def of(cls, root: Path, device: str, config: Mapping[str, Any], quantization: str) -> "Throughput | None":
        """For the model of a transformers `config`; None when its sizes are unknown."""
        try:
            model = Architecture.from_config(config).key
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        return cls(root, device, model, quantization)

    def add_step(self, trials: int, tokens: int, seconds: float) -> None:
        """Count a step of `trials` trials with so many prompt and completion tokens."""
        self._since = self._since + 1 if trials == self._trials else 1
        self._trials = trials
        if self._since <= SETTLING:
            return
        steps = self._steps[trials]
        if len(steps) == max(WRITTEN_AT):
            return
        steps.append((tokens, seconds))
        if len(steps) in WRITTEN_AT:
            # Medians: a step beside an evaluation or a checkpoint is slower than the others.
            fed, taken = (median(column) for column in zip(*steps, strict=True))
            write_rates(self._root, [Rate(*self._key, trials, fed, taken)])
