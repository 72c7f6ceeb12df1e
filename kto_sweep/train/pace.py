"""Keeps how fast steps went in the box's file of rates, for plans of later sweeps."""

from collections import defaultdict
from pathlib import Path
from statistics import median

import torch

from kto_sweep.models.architecture import Architecture
from kto_sweep.rates import Rate, write_rates
from kto_sweep.train.device import this_gpu
from kto_sweep.train.models import LoadedBase

SETTLING = 3
"""Steps after the number of trials changed that do not count."""
WRITTEN_AT = frozenset({10, 50, 250, 1000})
"""Steps with one number of trials after which its rate is written."""


class Pace:
    """The rate of one base model on one device, by the number of trials trained together."""

    def __init__(self, root: Path, device: str, model: str, quantization: str) -> None:
        """`root`: the home; `model`: the key of its Architecture."""
        self._root = root
        self._whose = (device, model, quantization)
        self._steps: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self._trials = self._since = 0

    @classmethod
    def of(cls, root: Path, base: LoadedBase, device: torch.device) -> "Pace | None":
        """None for a model whose sizes are named in no way that is known."""
        try:
            model = Architecture.from_config(base.model.config.to_dict()).key
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        gpu = this_gpu() if device.type == "cuda" else None
        return cls(root, gpu[0] if gpu else "cpu", model, base.quantization)

    def see(self, trials: int, tokens: int, seconds: float) -> None:
        """Take note of a step of `trials` trials that fed so many prompt and completion tokens."""
        self._since = self._since + 1 if trials == self._trials else 1
        self._trials = trials
        if self._since <= SETTLING:
            return
        steps = self._steps[trials]
        if len(steps) == max(WRITTEN_AT):
            return
        steps.append((tokens, seconds))
        if len(steps) in WRITTEN_AT:
            # Medians: a step beside an evaluation or a checkpoint is no measure of the others.
            fed, taken = (median(each) for each in zip(*steps, strict=True))
            write_rates(self._root, [Rate(*self._whose, trials, fed, taken)])
