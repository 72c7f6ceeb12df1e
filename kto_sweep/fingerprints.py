"""Detects whether all trials of a sweep were trained on the same rows and base model. Pure.

A run's summary has fingerprints of both. If trials with equal settings have different fingerprints, a file
changed during the sweep, and their results are not comparable.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kto_sweep.errors import KtoSweepError
from kto_sweep.parameter_types import describe_sources
from kto_sweep.trial import Trial, settings_key

DATA, EVAL_DATA, MODEL = "trial/data", "trial/eval_data", "trial/model"
INPUT_PARAMETERS = frozenset(
    {
        *("dataset", "eval_dataset", "eval_fraction", "max_length"),
        *("model", "model_size", "quantization", "full_finetune"),
    }
)
"""The parameters that decide which rows and weights a trial is trained on."""
MAX_CACHED = 4096
"""Combinations of these whose trial is kept; a sweep has few, and checking one takes 0.1 ms."""
MAX_NAMED_RUNS = 6
"""Maximum number of runs per group listed in a message."""


@dataclass(frozen=True)
class TrainedRun:
    """The inputs of one ended trial, and its run's summary."""

    run_id: str
    trial: Trial | None
    """A trial with its INPUT_PARAMETERS; others may differ. None: its configuration cannot be trained."""
    summary: Mapping[str, Any]

    @classmethod
    def of(cls, run_id: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> "TrainedRun":
        """From the run's configuration on its server."""
        return cls(run_id, _input_trial(_ByInputs(config)), summary)


class _ByInputs:
    """A configuration that equals all others with the same inputs: an argument to cache by."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._key = settings_key(config, INPUT_PARAMETERS)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByInputs) and self._key == other._key


@lru_cache(maxsize=MAX_CACHED)
def _input_trial(settings: _ByInputs) -> Trial | None:
    try:
        return Trial.from_config(settings.config)
    except KtoSweepError:
        return None


InputFingerprint = tuple[tuple[str, ...], str]
"""A requested input (its description, then the settings that identify it), and its fingerprint."""


class InputDrift:
    """Warns if a trial used different inputs than earlier trials."""

    def __init__(self, trials: Iterable[TrainedRun], say: Callable[[str], None]) -> None:
        self._seen = {fingerprint for trial in trials for fingerprint in _fingerprints(trial)}
        self._say = say

    def check(self, trial: TrainedRun) -> None:
        """Compare an ended trial with earlier ones, and record its fingerprints."""
        for requested, fingerprint in _fingerprints(trial):
            earlier = {previous for other, previous in self._seen if other == requested}
            if earlier and fingerprint not in earlier:
                self._say(
                    f"Warning: {requested[0]} changed during this sweep. Run {trial.run_id} used different "
                    "ones than earlier trials, so its results are not comparable. kto-sweep status lists "
                    "the runs."
                )
            self._seen.add((requested, fingerprint))


def differences(trials: Iterable[TrainedRun]) -> list[str]:
    """A sentence for each input that was not equal in all trials."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for trial in trials:
        for requested, fingerprint in _fingerprints(trial):
            groups.setdefault(requested, {}).setdefault(fingerprint, []).append(trial.run_id)
    return [
        _difference(requested[0], list(runs.values())) for requested, runs in groups.items() if len(runs) > 1
    ]


def _fingerprints(run: TrainedRun) -> Iterator[InputFingerprint]:
    if run.trial is None:
        return
    for name, requested in _requested_inputs(run.trial):
        value = run.summary.get(name)
        if isinstance(value, str):
            precision, _, fingerprint = value.rpartition(":")  # depends on the precision of the weights
            yield (*requested, precision), fingerprint


@lru_cache(maxsize=MAX_CACHED)
def _requested_inputs(trial: Trial) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Of rows and weights the summary's key, and what was requested."""
    model = (trial.base_model, str(trial.effective_quantization), str(trial.full_finetune))
    split = (str(trial.max_length), str(trial.eval_fraction), str(trial.eval_dataset))
    return (
        (DATA, (f"the rows of {_printable(describe_sources(trial.dataset))}", *split, *model)),
        (MODEL, (f"the weights of {_printable(trial.base_model)}", *model)),
    )


def _printable(name: str) -> str:
    """The name, which comes from a run and is untrusted, without terminal control characters."""
    return "".join(char for char in name if char.isprintable())


def _difference(what: str, groups: list[list[str]]) -> str:
    groups = sorted(groups, key=len, reverse=True)
    others = "; ".join(_named(group) for group in groups[1:])
    return (
        f"{what} changed during this sweep: {others} used different ones than {_named(groups[0])}. "
        "Their results are not comparable."
    )


def _named(runs: list[str]) -> str:
    more = f" and {len(runs) - MAX_NAMED_RUNS} more" if len(runs) > MAX_NAMED_RUNS else ""
    return ", ".join(runs[:MAX_NAMED_RUNS]) + more
