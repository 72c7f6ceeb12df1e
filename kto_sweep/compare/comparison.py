"""Everything that the terminal, the report and the picture show about a sweep, computed once."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kto_sweep.compare.eval_groups import eval_groups
from kto_sweep.compare.importance import ImportanceRun, ImportanceTable, parameter_importance
from kto_sweep.compare.ranking import RankedTrial, metric_columns, rank, searched_parameters
from kto_sweep.compare.seed_groups import SEED, SeedGroup, group_by_seed
from kto_sweep.compare.verdict import Verdict, make_verdict
from kto_sweep.errors import FailureCause, UsageError
from kto_sweep.metrics import METRICS, goal_of
from kto_sweep.search import objectives
from kto_sweep.sweep.view import UNFINISHED, UNSTABLE, SweepView
from kto_sweep.text import nearest
from kto_sweep.trial import lookup

MEMORY = "gpu/memory_peak_gb"
CURVES = ("rewards/margins", "loss", "kl", MEMORY)
"""The metrics whose curves are drawn."""


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
    """The ranked trials of a sweep, with groups, importance, Pareto fronts and verdict."""

    view: SweepView
    metric: str
    goal: str
    ranked: tuple[RankedTrial, ...]
    parameters: tuple[str, ...]
    """Dotted names of the searched parameters."""
    metrics: tuple[str, ...]
    """Metrics to show, the ranking metric first."""
    groups: tuple[SeedGroup, ...]
    """One for each configuration with a value, best mean first; those judged on other rows stand apart."""
    eval_groups: Mapping[str, tuple[RankedTrial, ...]]
    """The trials judged on each set of held-out rows, by the name of the set; empty if there is only one."""
    importance: ImportanceTable
    fronts: tuple[ParetoFront, ...]
    """Fronts of the sweep's objectives (if several), of metric and time, and of metric and GPU memory."""
    verdict: Verdict

    @property
    def best(self) -> tuple[RankedTrial, ...]:
        """The best trial of each ranking: one, if all trials were judged on the same rows."""
        return tuple(item for item in self.ranked if item.rank == 1)

    @property
    def replicated(self) -> tuple[SeedGroup, ...]:
        """The configurations that ran more than once."""
        return tuple(group for group in self.groups if len(group.runs) > 1)

    def differing(self) -> tuple[str, ...]:
        """The searched parameters in which the trials differ, most important first."""
        shares = {row.name: row.importance for row in self.importance.rows}
        differing = [
            name
            for name in self.parameters
            if len({repr(lookup(item.trial.config, name)) for item in self.ranked}) > 1
        ]
        return tuple(sorted(differing, key=lambda name: -shares.get(name, 0.0)))


def compare(view: SweepView, metric: str | None = None) -> Comparison:
    """The comparison by `metric`, by default the sweep's own.

    Raises UsageError for a metric that is not built in and that no trial has logged.
    """
    by = metric or view.metric
    goal = view.goal if by == view.metric else goal_of(by)
    logged = {name for trial in view.trials for name in trial.summary}
    if metric is not None and by not in METRICS and by not in logged:
        names = sorted({*METRICS, *(name for name in logged if not name.startswith("_"))})
        near = nearest(by, names) or nearest(f"eval/{by}", names)
        raise UsageError(f"--metric {by}: no trial has logged it", hint=near or f"one of {', '.join(names)}")
    ranked = tuple(rank(view.trials, by, goal))
    fronts = tuple(_fronts(view, ranked, goal))
    parameters = searched_parameters(view)
    groups = tuple(group_by_seed(ranked, goal))
    importance = _importance(ranked, parameters, goal)
    by_rows: dict[str, tuple[RankedTrial, ...]] = {}
    for item in ranked:
        if item.group:
            by_rows[item.group] = (*by_rows.get(item.group, ()), item)
    on_front = fronts[0].run_ids if view.objectives else ()
    return Comparison(
        view=view,
        metric=by,
        goal=goal,
        ranked=ranked,
        parameters=parameters,
        metrics=tuple(metric_columns(view, by)),
        groups=groups,
        eval_groups=by_rows,
        importance=importance,
        fronts=fronts,
        verdict=make_verdict(view, ranked, by, goal, groups, importance, on_front),
    )


def _importance(ranked: Sequence[RankedTrial], parameters: Sequence[str], goal: str) -> ImportanceTable:
    """The same numbers as on the dashboard: from ended runs, ignoring the seed."""
    names = [name for name in parameters if name.split(".")[-1] != SEED]
    ended = [item for item in ranked if item.trial.state not in UNFINISHED]
    runs = [
        importance_run(
            {name: lookup(item.trial.config, name) for name in names},
            item.value,
            item.trial.state,
            item.trial.failure,
        )
        for item in ended
    ]
    return group_importance(names, runs, [item.group for item in ended], maximize=goal == "maximize")


def importance_run(
    config: Mapping[str, object], value: float | None, state: str, failure: str
) -> ImportanceRun | None:
    """An ended run; None if it failed for other reasons than its settings."""
    diverged = failure in {FailureCause.DIVERGED, UNSTABLE}
    return None if state in {"failed", "crashed"} and not diverged else ImportanceRun(config, value, diverged)


def group_importance(
    names: Sequence[str], runs: Sequence[ImportanceRun | None], groups: Sequence[str], *, maximize: bool
) -> ImportanceTable:
    """The importance in the largest of the eval_groups groups, because values of others do not compare."""
    counted = [(run, group) for run, group in zip(runs, groups, strict=True) if run is not None]
    sizes = Counter(group for run, group in counted if run.value is not None)
    largest = min(sizes, key=lambda group: (-sizes[group], group), default="")
    own = [run for run, group in counted if group == largest]
    table = parameter_importance(names, own, maximize=maximize)
    return replace(table, note=f"Of the runs judged on {largest}: {table.note}") if largest else table


def _fronts(view: SweepView, ranked: Sequence[RankedTrial], goal: str) -> Iterator[ParetoFront]:
    if view.objectives:
        names = " and ".join(objective.name for objective in view.objectives)
        losses = {
            item.trial.run_id: [
                _loss(item.trial.value(objective.name), objective.goal) for objective in view.objectives
            ]
            for item in ranked
        }
        meaning = f"no run is better in one of {names} without being worse in another"
        groups = dict(zip([trial.run_id for trial in view.trials], _objective_groups(view), strict=True))
        yield ParetoFront("p", "pareto_objectives", meaning, pareto_front(ranked, losses, groups))
    for marker, key, resource, costs in (
        ("t", "pareto_time", "time", [item.trial.seconds for item in ranked]),
        ("m", "pareto_memory", "GPU memory", [item.trial.value(MEMORY) for item in ranked]),
    ):
        losses = {
            item.trial.run_id: [_loss(item.value, goal), cost or None]  # a cost of 0 was not measured
            for item, cost in zip(ranked, costs, strict=True)
        }
        meaning = f"no run is better and takes less {resource}"
        groups = {item.trial.run_id: item.group for item in ranked}
        yield ParetoFront(marker, key, meaning, pareto_front(ranked, losses, groups))


def _objective_groups(view: SweepView) -> list[str]:
    return eval_groups(view.trained(), [objective.name for objective in view.objectives])


def _loss(value: float | None, goal: str) -> float | None:
    return -value if value is not None and goal == "maximize" else value


def pareto_front(
    ranked: Sequence[RankedTrial],
    losses: Mapping[str, Sequence[float | None]],
    groups: Mapping[str, str] | None = None,
) -> frozenset[str]:
    """Run ids on the Pareto fronts of finished runs with all losses: one for each group of runs."""
    rows: dict[str, dict[str, list[float]]] = {}
    for item in ranked:
        run_id = item.trial.run_id
        present = [loss for loss in losses[run_id] if loss is not None]
        if item.trial.state == "finished" and None not in losses[run_id]:
            rows.setdefault((groups or {}).get(run_id, ""), {})[run_id] = present
    return frozenset(
        list(group)[index]
        for group in rows.values()
        for index in objectives.pareto_front(list(group.values()))
    )
