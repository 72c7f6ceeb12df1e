"""Groups the runs of a sweep by the rows that their eval/ metrics are measured on.

eval/common_loss of two trials compares only if both were judged on the same held-out rows. A sweep that
searches dataset, eval_fraction or max_length holds out other rows for each value, and has a ranking for each.
Other metrics are not measured on held-out rows, and have one ranking: those of training batches compare no
better across data sets, which `kto-sweep validate` says of such a metric.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kto_sweep.fingerprints import DATA, EVAL_DATA, TrainedRun
from kto_sweep.text import show
from kto_sweep.trial import Trial

ROW_SETTINGS = ("eval_dataset", "dataset", "eval_fraction", "max_length")
"""The parameters that decide which rows are held out, and where they are cut."""
_SETTINGS = (*ROW_SETTINGS, "model", "model_size")
_DIGITS = 6


def is_measured_on_eval_rows(metric: str) -> bool:
    """Whether the metric is measured on held-out rows, or may be: objective/best is the sweep's metric."""
    return metric.startswith(("eval/", "objective/"))


def eval_groups(runs: Sequence[TrainedRun], metrics: Iterable[str]) -> list[str]:
    """For each run the name of its group, such as `dataset a.jsonl`; "" for all if there is only one.

    Runs in one group were judged on the same rows, so their values of these metrics compare.
    """
    if not any(map(is_measured_on_eval_rows, metrics)):
        return [""] * len(runs)
    keys = _row_keys(runs)
    if len(set(keys)) < 2:
        return [""] * len(runs)
    names = _names(runs, keys)
    return [names[key] for key in keys]


def several_rankings(metric: str, groups: Sequence[str]) -> list[str]:
    """Why these groups are not ranked against each other; empty if there is only one."""
    if len(groups) < 2:
        return []
    return [
        f"{metric} does not compare trials that were judged on different held-out rows. These trials were "
        f"judged on {len(groups)} sets of rows ({'; '.join(groups)}), so each set has its own ranking. For "
        "one ranking, hold out the same rows for all trials: eval_dataset: FILE, and one max_length."
    ]


def _row_keys(runs: Sequence[TrainedRun]) -> list[object]:
    """For each run a key that is equal for the same held-out rows."""
    logged = [_fingerprint(run.summary) for run in runs]
    requested = [_requested(run) for run in runs]
    # A run logs its fingerprint when it ends. Until then its rows are those of runs with the same settings.
    by_request: dict[object, str] = {
        wanted: key
        for wanted, key in zip(requested, logged, strict=True)
        if wanted is not None and key is not None
    }
    keys: list[object] = [
        key if key is not None else by_request.get(wanted, wanted)
        for key, wanted in zip(logged, requested, strict=True)
    ]
    known = {key for key in keys if key is not None}
    # Runs of other programs say nothing about rows: with one set of rows, it is theirs too.
    only = next(iter(known)) if len(known) == 1 else None
    return [only if key is None else key for key in keys]


def _fingerprint(summary: Mapping[str, Any]) -> str | None:
    """The fingerprint of the held-out rows; of a run that logged none, that of all its rows."""
    value = summary.get(EVAL_DATA) or summary.get(DATA)
    return value if isinstance(value, str) else None


def _requested(run: TrainedRun) -> tuple[str, ...] | None:
    """The settings that decide the run's held-out rows; None if they are unknown."""
    if run.trial is None:
        return None
    names = ("eval_dataset", "max_length") if run.trial.eval_dataset else ROW_SETTINGS
    return tuple(repr(getattr(run.trial, name)) for name in names)


def _names(runs: Sequence[TrainedRun], keys: Sequence[object]) -> dict[object, str]:
    """The name of each group: the settings in which it differs from others, and its fingerprint if needed."""
    members: dict[object, set[Trial | None]] = {}
    for run, key in zip(runs, keys, strict=True):
        members.setdefault(key, set()).add(run.trial)
    parts: dict[object, list[str]] = {key: [] for key in members}
    for name in _SETTINGS:
        values = {key: {show(_setting(each, name)) for each in trials} for key, trials in members.items()}
        if all(len(shown) == 1 for shown in values.values()) and len(set(map(tuple, values.values()))) > 1:
            for key, (value,) in values.items():
                parts[key].append(f"{name} {value}")
    names = {key: _printable(", ".join(words)) for key, words in parts.items()}
    ambiguous = len(set(names.values())) < len(names)
    for number, (key, name) in enumerate(names.items(), start=1):
        if ambiguous or not name:
            rows = f"held-out rows {key[:_DIGITS] if isinstance(key, str) else number}"
            names[key] = f"{name}, {rows}" if name else rows
    return names


def _setting(trial: Trial | None, name: str) -> Any:
    value = getattr(trial, name, None)
    return list(value) if isinstance(value, tuple) else value


def _printable(name: str) -> str:
    """The name, whose values come from runs and are untrusted, without terminal control characters."""
    return "".join(char for char in name if char.isprintable())
