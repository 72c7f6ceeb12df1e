"""Ranks the configurations of a sweep, and with them its trials. Pure.

What ranks: finished trials with a finite value of the metric. Trials that failed, diverged or broke never
rank, whatever they logged before; unfinished and stopped ones stand apart with the step that they reached.
Trials that differ only in the seed are replicates of one configuration, which ranks by their mean.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kto_sweep.compare.eval_groups import eval_groups
from kto_sweep.search.distributions import value_key
from kto_sweep.search.space import SEED, searched_names
from kto_sweep.sweep.trial_state import TrialState, state_of
from kto_sweep.sweep.view import UNFINISHED, SweepView, TrialRecord
from kto_sweep.trial import leaves, lookup


class Standing(StrEnum):
    """Whether a trial ranks, or why not; in the order in which trials are listed."""

    RANKED = "ranked"
    UNFINISHED = "unfinished"
    STOPPED = "stopped early"
    WITHOUT_VALUE = "no value"
    """Finished without a finite value of the metric."""
    FAILED = "failed"
    """Failed, diverged, unstable or crashed."""


@dataclass(frozen=True)
class Configuration:
    """One set of searched values, with its finished trials; at least one."""

    rank: int
    """1 is the best among those that were judged on the same rows."""
    settings: Mapping[str, Any]
    """The searched parameters by dotted name, without the seed."""
    trials: tuple[TrialRecord, ...]
    """Best first."""
    values: tuple[float, ...]
    """The metric of each trial."""
    group: str = ""
    """The name of its eval_groups group; empty if all trials are in one."""

    @property
    def mean(self) -> float:
        """The mean of its values."""
        return statistics.fmean(self.values)


@dataclass(frozen=True)
class RankedTrial:
    """A trial and its place in the sweep."""

    rank: int | None
    """That of its configuration; None for a trial that does not rank."""
    value: float | None
    """The metric; None if missing or not finite. Trials that do not rank may have one."""
    trial: TrialRecord
    standing: Standing
    state: TrialState
    group: str = ""
    """The name of its eval_groups group; empty if all trials are in one."""

    @property
    def progress(self) -> str:
        """How far an incomplete trial came, as `step 58 of 200`; empty for a complete one, or if unknown."""
        trial = self.trial
        if self.standing in {Standing.RANKED, Standing.WITHOUT_VALUE} or trial.step is None:
            return ""
        of = f" of {trial.planned_steps}" if trial.planned_steps else ""
        return f"step {trial.step}{of}"


@dataclass(frozen=True)
class Ranking:
    """The trials and configurations of a sweep by one metric."""

    trials: tuple[RankedTrial, ...]
    """Ranked ones first, those judged on the same rows together; then the others by standing."""
    configurations: tuple[Configuration, ...]
    """Best first; those judged on the same rows together."""


def rank(view: SweepView, metric: str, goal: str) -> Ranking:
    """The ranking by `metric`; it does not depend on the order of the view's trials."""
    trials = sorted(view.trials, key=_by_creation)
    groups = eval_groups([trial.trained for trial in trials], [metric])
    maximize = goal == "maximize"
    listed: dict[Standing, list[RankedTrial]] = {standing: [] for standing in Standing}
    for trial, group in zip(trials, groups, strict=True):
        value = trial.value(metric, maximize=maximize)
        standing = _standing(trial, value)
        listed[standing].append(RankedTrial(None, value, trial, standing, state_of(view, trial), group))
    configurations = _configurations(view, listed.pop(Standing.RANKED), maximize=maximize)
    ranked = [
        RankedTrial(each.rank, value, trial, Standing.RANKED, state_of(view, trial), each.group)
        for each in configurations
        for trial, value in zip(each.trials, each.values, strict=True)
    ]
    return Ranking((*ranked, *(item for items in listed.values() for item in items)), tuple(configurations))


def _by_creation(trial: TrialRecord) -> tuple[float, str]:
    # W&B tells whole seconds: finer times would order trials differently on different servers.
    return (float("inf") if trial.created is None else trial.created // 1, trial.run_id)


def _standing(trial: TrialRecord, value: float | None) -> Standing:
    if trial.state in UNFINISHED:
        return Standing.UNFINISHED
    if trial.state == "killed" and trial.failure == "killed":
        return Standing.STOPPED
    if trial.failure:
        return Standing.FAILED
    return Standing.WITHOUT_VALUE if value is None else Standing.RANKED


def _configurations(view: SweepView, items: Sequence[RankedTrial], *, maximize: bool) -> list[Configuration]:
    names = [name for name in searched_parameters(view) if not is_seed(name)]
    members: dict[str, dict[object, list[RankedTrial]]] = {}
    for item in items:
        key = tuple(value_key(lookup(item.trial.config, name)) for name in names)
        members.setdefault(item.group, {}).setdefault(key, []).append(item)
    sign = -1 if maximize else 1
    ranked = []
    for group, by_settings in members.items():
        found = []
        for replicates in by_settings.values():
            replicates.sort(key=lambda item: (sign * (item.value or 0.0), _by_creation(item.trial)))
            trials = tuple(item.trial for item in replicates)
            values = tuple(item.value for item in replicates if item.value is not None)
            settings = {name: lookup(trials[0].config, name) for name in names}
            found.append(Configuration(0, settings, trials, values, group))
        found.sort(key=lambda each: (sign * each.mean, _by_creation(each.trials[0])))
        ranked += [
            Configuration(place, each.settings, each.trials, each.values, group)
            for place, each in enumerate(found, start=1)
        ]
    return ranked


def is_seed(name: str) -> bool:
    """Whether the dotted name is that of the seed, which is no setting of a configuration."""
    return name.rpartition(".")[2] == SEED


def searched_parameters(view: SweepView) -> tuple[str, ...]:
    """Dotted names of the searched parameters, or of those that differ if the space is unknown."""
    if names := searched_names(view.space):
        return names
    present = dict.fromkeys(".".join(path) for trial in view.trials for path, _ in leaves(trial.config))
    return tuple(
        sorted(name for name in present if len({repr(lookup(t.config, name)) for t in view.trials}) > 1)
    )
