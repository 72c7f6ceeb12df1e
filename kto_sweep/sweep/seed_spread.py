"""This box's record of finished trials, and the spread between seeds that they show.

A sweep without replicates says nothing about seed noise. Earlier sweeps of the same model, data, metric and
budget may: each trial that finishes here adds a line to one file in the home, and gets in its summary what
the trials of other sweeps showed until then. Every reader of the run, on any server, sees the same number.
"""

import hashlib
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kto_sweep.compare.confidence import DEGREES, DEVIATION
from kto_sweep.fingerprints import DATA, MODEL
from kto_sweep.home import Home
from kto_sweep.json_file import parse_json
from kto_sweep.locks import try_lock
from kto_sweep.metrics import summary_value
from kto_sweep.search.space import SEED
from kto_sweep.trial import DATA_PARAMETERS, Trial

FILE = "finished-trials.jsonl"
MAX_LINES = 4_000
"""Above this, the older half of the lines is dropped."""
LOCK_SECONDS = 5.0
"""Other agents hold the lock for milliseconds."""
_NAMES = frozenset({SEED, *DATA_PARAMETERS, "model", "model_size"})
"""Parameters that do not tell configurations apart: the seed, and names of what has a fingerprint."""


@dataclass(frozen=True)
class FinishedTrial:
    """One line of the file."""

    run: str
    sweep: str
    """ENTITY/PROJECT/ID"""
    model: str
    """Precision and fingerprint of the base model's weights."""
    data: str
    """Fingerprint of the training and held-out rows."""
    budget: str
    """`steps 200`, or `epochs 1`: the number of examples then depends on the data alone."""
    metric: str
    configuration: str
    """Hash of all other parameters, without the seed."""
    seed: int
    value: float

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for trials whose spread is comparable."""
        return self.model, self.data, self.budget, self.metric


def finished_trial(
    run: str, sweep: str, trial: Trial, metric: str, maximize: bool, summary: Mapping[str, Any]
) -> FinishedTrial | None:
    """The line of a finished trial; None if it has no value, no fingerprints, or its training broke."""
    value = summary_value(summary, metric, maximize=maximize)
    model, data = summary.get(MODEL), summary.get(DATA)
    if value is None or not isinstance(model, str) or not isinstance(data, str) or "trial/health" in summary:
        return None
    settings = {name: value for name, value in trial.to_config().items() if name not in _NAMES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    budget = f"epochs {trial.epochs:g}" if trial.max_steps is None else f"steps {trial.max_steps}"
    return FinishedTrial(run, sweep, model, data, budget, metric, digest, trial.seed, value)


def record(home: Home, new: FinishedTrial) -> dict[str, float]:
    """Add a line, and return the summary with the spread of other sweeps; empty if that is unknown.

    Raises OSError if the file cannot be written, or is locked for LOCK_SECONDS.
    """
    path = home.root / FILE
    home.root.mkdir(parents=True, exist_ok=True)
    with try_lock(path.with_suffix(".lock"), LOCK_SECONDS) as locked:
        if not locked:
            raise TimeoutError(f"{path} is in use")
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = text.splitlines()
        line = json.dumps(asdict(new))
        if len(lines) < MAX_LINES:
            # A crash may have left half a line: the new one must not be part of it.
            _write(path, f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n", os.O_APPEND)
        else:
            scratch = path.with_suffix(".tmp")
            _write(scratch, "\n".join([*lines[-MAX_LINES // 2 :], line, ""]), os.O_TRUNC)
            scratch.replace(path)
    return spread(new, _parse(lines))


def spread(new: FinishedTrial, trials: Iterable[FinishedTrial]) -> dict[str, float]:
    """The summary with the spread between seeds that trials of other sweeps with the same key show.

    Variances are pooled over configurations with several seeds. A run counts once, with its last value, and
    so does a seed of a configuration: trained twice, it shows no spread between seeds.
    """
    by_run = {trial.run: trial for trial in trials}
    by_configuration: dict[str, dict[int, float]] = {}
    for trial in by_run.values():
        if trial.key == new.key and trial.sweep != new.sweep and trial.run != new.run:
            by_configuration.setdefault(trial.configuration, {})[trial.seed] = trial.value
    repeated = [list(values.values()) for values in by_configuration.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    if not degrees:
        return {}
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in repeated)
    deviation = math.sqrt(squares / degrees)
    # Values that are all equal show that the metric did not move, not that there is no noise.
    return {DEVIATION: deviation, DEGREES: float(degrees)} if deviation > 0 else {}


def _parse(lines: Iterable[str]) -> Iterator[FinishedTrial]:
    """The trials of these lines, without damaged ones."""
    kinds: dict[str, Any] = {"seed": int, "value": int | float}
    for line in lines:
        try:
            values = parse_json(line)
            trial = FinishedTrial(**values)
        except (ValueError, TypeError):
            continue
        if all(isinstance(value, kinds.get(name, str)) for name, value in values.items()) and math.isfinite(
            trial.value
        ):
            yield trial


def _write(path: Path, text: str, how: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.write(text)
