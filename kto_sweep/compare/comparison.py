"""Everything that compare shows of a sweep, worked out once for all that show it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kto_sweep.compare.importance import Importances, importances
from kto_sweep.compare.ranking import Ranked, columns, rank, varied
from kto_sweep.compare.replicates import SEED, Replicates, group
from kto_sweep.compare.verdict import Verdict, judge
from kto_sweep.errors import UsageError
from kto_sweep.metrics import METRICS, goal_of
from kto_sweep.search.objectives import pareto_front
from kto_sweep.sweep.view import RUNNING, SweepView
from kto_sweep.text import nearest
from kto_sweep.trial import lookup

MEMORY = "gpu/memory_peak_gb"
CURVES = ("rewards/margins", "loss", "kl", MEMORY)
"""The metrics that are drawn."""


@dataclass(frozen=True)
class Front:
    """Finished runs that no other beats in everything at once."""

    sign: str
    """What marks them."""
    name: str
    """As a program reads it."""
    meaning: str
    runs: frozenset[str]


Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""By run and metric: `step`, `time` (seconds) and `value`, of the same length."""


@dataclass(frozen=True)
class Comparison:
    """The trials of a sweep, ranked, and what follows from that."""

    view: SweepView
    metric: str
    goal: str
    ranked: tuple[Ranked, ...]
    parameters: tuple[str, ...]
    """Dotted names of those that the sweep searches."""
    metrics: tuple[str, ...]
    """Those to show: the ranking one first."""
    groups: tuple[Replicates, ...]
    """One for each configuration that has a value, the best mean first."""
    importance: Importances
    fronts: tuple[Front, ...]
    """Of the sweep's objectives where it has several, of metric and time, and of metric and GPU memory."""
    verdict: Verdict

    @property
    def replicated(self) -> tuple[Replicates, ...]:
        """The configurations that have run more than once."""
        return tuple(each for each in self.groups if len(each.runs) > 1)

    def differing(self) -> tuple[str, ...]:
        """The parameters in which the trials differ, those that matter first."""
        shares = {row.name: row.importance for row in self.importance.rows}
        differ = [
            name
            for name in self.parameters
            if len({repr(lookup(item.trial.config, name)) for item in self.ranked}) > 1
        ]
        return tuple(sorted(differ, key=lambda name: -shares.get(name, 0.0)))


def compare(view: SweepView, metric: str | None = None) -> Comparison:
    """The comparison by `metric`, or by the sweep's own.

    Raises UsageError for a metric that neither this program nor any trial knows.
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
    parameters = varied(view)
    groups = tuple(group(ranked, goal))
    told = _importance(ranked, parameters)
    return Comparison(
        view=view,
        metric=by,
        goal=goal,
        ranked=ranked,
        parameters=parameters,
        metrics=tuple(columns(view, by)),
        groups=groups,
        importance=told,
        fronts=fronts,
        verdict=judge(view, ranked, by, goal, groups, told, fronts[0].runs if view.objectives else ()),
    )


def _importance(ranked: Sequence[Ranked], parameters: Sequence[str]) -> Importances:
    """As the dashboard's: from the runs that are over, seeds aside."""
    over = [item for item in ranked if item.trial.state not in RUNNING]
    names = [name for name in parameters if name.split(".")[-1] != SEED]
    configs = [{name: lookup(item.trial.config, name) for name in names} for item in over]
    return importances(names, configs, [item.value for item in over])


def _fronts(view: SweepView, ranked: Sequence[Ranked], goal: str) -> Iterator[Front]:
    if view.objectives:
        names = " and ".join(each.name for each in view.objectives)
        values = {
            item.trial.run_id: [_loss(item.trial.value(each.name), each.goal) for each in view.objectives]
            for item in ranked
        }
        meaning = f"no other is better in one of {names} and not worse in another"
        yield Front("p", "pareto_objectives", meaning, front(ranked, values))
    for sign, name, what, costs in (
        ("t", "pareto_time", "time", [item.trial.seconds for item in ranked]),
        ("m", "pareto_memory", "GPU memory", [item.trial.value(MEMORY) for item in ranked]),
    ):
        losses = {
            item.trial.run_id: [_loss(item.value, goal), cost or None]  # a cost of 0 was not measured
            for item, cost in zip(ranked, costs, strict=True)
        }
        yield Front(sign, name, f"no other is better and takes less {what}", front(ranked, losses))


def _loss(value: float | None, goal: str) -> float | None:
    return -value if value is not None and goal == "maximize" else value


def front(ranked: Sequence[Ranked], losses: Mapping[str, Sequence[float | None]]) -> frozenset[str]:
    """The Pareto front of the finished runs that have all of their losses."""
    rows = {
        item.trial.run_id: [loss for loss in losses[item.trial.run_id] if loss is not None]
        for item in ranked
        if item.trial.state == "finished" and None not in losses[item.trial.run_id]
    }
    names = list(rows)
    return frozenset(names[place] for place in pareto_front(list(rows.values())))
