"""Everything that compare shows of a sweep, worked out once for all that show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kto_sweep.compare.importance import Importances, importances
from kto_sweep.compare.ranking import Ranked, columns, lookup, rank, varied
from kto_sweep.compare.replicates import SEED, Replicates, group
from kto_sweep.compare.verdict import Verdict, judge
from kto_sweep.errors import UsageError
from kto_sweep.metrics import METRICS, direction
from kto_sweep.sweep.remote import RUNNING, SweepView
from kto_sweep.wording import nearest

MEMORY = "gpu/memory_peak_gb"
CURVES = ("rewards/margins", "loss", "kl", MEMORY)
"""The metrics that are drawn."""

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
    fast: frozenset[str]
    """Runs that no other beats in both the metric and time."""
    small: frozenset[str]
    """Runs that no other beats in both the metric and GPU memory."""
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
    goal = view.goal if by == view.metric else direction(by)
    logged = {name for trial in view.trials for name in trial.summary}
    if metric is not None and by not in METRICS and by not in logged:
        names = sorted({*METRICS, *(name for name in logged if not name.startswith("_"))})
        near = nearest(by, names) or nearest(f"eval/{by}", names)
        raise UsageError(f"--metric {by}: no trial has logged it", hint=near or f"one of {', '.join(names)}")
    ranked = tuple(rank(view.trials, by, goal))
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
        fast=front(ranked, {item.trial.run_id: item.trial.seconds for item in ranked}),
        small=front(ranked, {item.trial.run_id: item.trial.value(MEMORY) for item in ranked}),
        verdict=judge(view, ranked, by, goal, groups, told),
    )


def _importance(ranked: Sequence[Ranked], parameters: Sequence[str]) -> Importances:
    """As the dashboard's: from the runs that are over, seeds aside."""
    over = [item for item in ranked if item.trial.state not in RUNNING]
    names = [name for name in parameters if name.split(".")[-1] != SEED]
    configs = [{name: lookup(item.trial.config, name) for name in names} for item in over]
    return importances(names, configs, [item.value for item in over])


def front(ranked: Sequence[Ranked], costs: Mapping[str, float | None]) -> frozenset[str]:
    """Finished runs that no better or equal one undercuts in cost; a cost of 0 was not measured."""
    found: set[str] = set()
    least: float | None = None
    for item in ranked:  # the best first: each must cost less than all before it
        cost = costs[item.trial.run_id]
        if item.value is None or item.trial.state != "finished" or not cost:
            continue
        if least is None or cost < least:
            found.add(item.trial.run_id)
            least = cost
    return frozenset(found)
