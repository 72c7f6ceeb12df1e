"""Everything that page, terminal, JSON, report and picture show about a sweep, computed once. Pure.

    runs --> ranking (configurations, trials) --> verdicts --> next steps --> sentences
                    \\--> importance, Pareto fronts

The result does not depend on the order of the runs, nor on the server that they were read from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kto_sweep.compare.eval_groups import eval_groups
from kto_sweep.compare.importance import ImportanceRun, ImportanceTable, parameter_importance
from kto_sweep.compare.next_steps import NextStep, next_steps
from kto_sweep.compare.ranking import (
    Configuration,
    RankedTrial,
    Ranking,
    Standing,
    is_seed,
    rank,
    searched_parameters,
)
from kto_sweep.compare.sentences import Sentences, sentences
from kto_sweep.compare.verdict import Verdict, make_verdicts
from kto_sweep.errors import UsageError
from kto_sweep.metrics import METRICS, goal_of
from kto_sweep.search import objectives
from kto_sweep.sweep.view import SweepView
from kto_sweep.text import nearest
from kto_sweep.trial import lookup

MEMORY = "gpu/memory_peak_gb"
CURVES = ("rewards/margins", "loss", "kl", MEMORY)
"""The metrics whose curves are drawn."""
FIXED_COLUMNS = ("rewards/margins", "kl", MEMORY)
"""Metrics that a comparison always shows next to the ranking metric."""


@dataclass(frozen=True)
class ParetoFront:
    """Finished runs that no other run dominates."""

    marker: str
    """One letter that marks these runs in the table."""
    key: str
    """Name in JSON output."""
    meaning: str
    run_ids: frozenset[str]


Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""By run and metric: `step`, `time` (seconds) and `value`, of the same length."""


@dataclass(frozen=True)
class Comparison:
    """The ranked trials of a sweep, with its verdicts, importance and Pareto fronts."""

    view: SweepView
    metric: str
    goal: str
    trials: tuple[RankedTrial, ...]
    """Ranked ones first, best first; then the others by standing."""
    configurations: tuple[Configuration, ...]
    """Best first; those judged on other rows apart."""
    verdicts: tuple[Verdict, ...]
    """One for each set of held-out rows; empty if no trial ranks."""
    parameters: tuple[str, ...]
    """Dotted names of the searched parameters."""
    metrics: tuple[str, ...]
    """Metrics to show, the ranking metric first."""
    importance: ImportanceTable
    fronts: tuple[ParetoFront, ...]
    """Fronts of the sweep's objectives (if several), of metric and time, and of metric and GPU memory."""
    next_steps: tuple[NextStep, ...]
    sentences: Sentences
    """The verdict for people: headings with their sentences."""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; None if no trial ranks, or if trials were judged on different rows."""
        return self.verdicts[0] if len(self.verdicts) == 1 else None

    def differing(self) -> tuple[str, ...]:
        """The searched parameters in which the trials differ, most important first."""
        shares = {row.name: row.importance for row in self.importance.rows}
        differing = [
            name
            for name in self.parameters
            if len({repr(lookup(item.trial.config, name)) for item in self.trials}) > 1
        ]
        return tuple(sorted(differing, key=lambda name: -shares.get(name, 0.0)))


def compare(
    view: SweepView, metric: str | None = None, importance: ImportanceTable | None = None
) -> Comparison:
    """The comparison by `metric`, by default the sweep's own.

    `importance` is the result of `sweep_importance` for the same ended trials, if already known.
    Raises UsageError for a metric that is not built in and that no trial has logged.
    """
    by = metric or view.metric
    goal = view.goal if by == view.metric else goal_of(by)
    _require_logged(view, metric)
    ranking = rank(view, by, goal)
    fronts = tuple(_fronts(view, ranking, goal))
    parameters = searched_parameters(view)
    verdicts = make_verdicts(ranking.configurations, is_own_metric=by == view.metric)
    importance = importance or sweep_importance(parameters, ranking, maximize=goal == "maximize")
    steps = tuple(next_steps(view, verdicts, importance, by))
    on_front = fronts[0].run_ids if view.objectives else frozenset()
    front = [item.trial for item in ranking.trials if item.trial.run_id in on_front]
    return Comparison(
        view=view,
        metric=by,
        goal=goal,
        trials=ranking.trials,
        configurations=ranking.configurations,
        verdicts=verdicts,
        parameters=parameters,
        metrics=tuple(_metric_columns(view, by)),
        importance=importance,
        fronts=fronts,
        next_steps=steps,
        sentences=sentences(view, ranking, verdicts, importance, front, steps, by, goal),
    )


def _require_logged(view: SweepView, metric: str | None) -> None:
    logged = {name for trial in view.trials for name in trial.summary}
    if metric is None or metric in METRICS or metric in logged:
        return
    names = sorted({*METRICS, *(name for name in logged if not name.startswith("_"))})
    near = nearest(metric, names) or nearest(f"eval/{metric}", names)
    raise UsageError(f"--metric {metric}: no trial has logged it", hint=near or f"one of {', '.join(names)}")


_ENDED = {Standing.RANKED, Standing.WITHOUT_VALUE, Standing.FAILED}


def sweep_importance(parameters: Sequence[str], ranking: Ranking, *, maximize: bool) -> ImportanceTable:
    """Importance of the searched parameters but the seed, from ranked trials.

    Failed trials do not count: in simulated sweeps with 20 % of them, counted as the worst, they hid which
    parameter mattered among the others (benchmarks/RESULTS.md).

    Of several sets of held-out rows, the largest counts, because values of others do not compare.
    """
    names = [name for name in parameters if not is_seed(name)]
    counts: dict[str, int] = {}
    for item in ranking.trials:
        counts[item.group] = counts.get(item.group, 0) + (item.standing is Standing.RANKED)
    group = max(sorted(counts), key=lambda name: counts[name], default="")
    ended = [
        ImportanceRun(
            {name: lookup(item.trial.config, name) for name in names},
            item.value if item.standing is Standing.RANKED else None,
        )
        for item in ranking.trials
        if item.group == group and item.standing in _ENDED
    ]
    table = parameter_importance(names, ended, maximize=maximize)
    return replace(table, note=f"Of the trials judged on {group}: {table.note}") if group else table


def _metric_columns(view: SweepView, metric: str) -> list[str]:
    """Metrics to show: the ranking metric, the other objectives, then logged FIXED_COLUMNS."""
    shown = list(dict.fromkeys([metric, *(objective.name for objective in view.objectives)]))
    for name in FIXED_COLUMNS:
        if name not in shown and any(
            isinstance(trial.summary.get(name), float | int) for trial in view.trials
        ):
            shown.append(name)
    return shown


def _fronts(view: SweepView, ranking: Ranking, goal: str) -> Iterator[ParetoFront]:
    ranked = [item for item in ranking.trials if item.standing is Standing.RANKED]
    if view.objectives:
        names = [objective.name for objective in view.objectives]
        losses = {
            item.trial.run_id: [
                _loss(item.trial.value(each.name, maximize=each.maximize), each.goal)
                for each in view.objectives
            ]
            for item in ranked
        }
        meaning = f"no run is better in one of {' and '.join(names)} without being worse in another"
        groups = eval_groups([item.trial.trained for item in ranked], names)
        front = pareto_front(ranked, losses, dict(zip(losses, groups, strict=True)))
        yield ParetoFront("p", "pareto_objectives", meaning, front)
    for marker, key, resource, costs in (
        ("t", "pareto_time", "time", [item.trial.seconds for item in ranked]),
        ("m", "pareto_memory", "GPU memory", [item.trial.value(MEMORY) for item in ranked]),
    ):
        losses = {
            item.trial.run_id: [_loss(item.value, goal), cost or None]  # a cost of 0 was not measured
            for item, cost in zip(ranked, costs, strict=True)
        }
        meaning = f"no run is better and takes less {resource}"
        groups_by_run = {item.trial.run_id: item.group for item in ranked}
        yield ParetoFront(marker, key, meaning, pareto_front(ranked, losses, groups_by_run))


def _loss(value: float | None, goal: str) -> float | None:
    return -value if value is not None and goal == "maximize" else value


def pareto_front(
    ranked: Sequence[RankedTrial],
    losses: Mapping[str, Sequence[float | None]],
    groups: Mapping[str, str] | None = None,
) -> frozenset[str]:
    """Run ids on the Pareto fronts of runs with all losses: one front for each group of runs."""
    rows: dict[str, dict[str, list[float]]] = {}
    for item in ranked:
        run_id = item.trial.run_id
        present = [loss for loss in losses[run_id] if loss is not None]
        if None not in losses[run_id]:
            rows.setdefault((groups or {}).get(run_id, ""), {})[run_id] = present
    return frozenset(
        list(group)[index]
        for group in rows.values()
        for index in objectives.pareto_front(list(group.values()))
    )
