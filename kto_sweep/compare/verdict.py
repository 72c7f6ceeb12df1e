"""The verdict on a sweep in words: which trial is best, how sure, what mattered, what broke, what next.

A pure function of what was read; whoever shows it may leave parts out.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.compare.importance import Importances
from kto_sweep.compare.ranking import Ranked
from kto_sweep.compare.replicates import SEED, Replicates, noise
from kto_sweep.errors import FailureCause
from kto_sweep.fingerprints import differences
from kto_sweep.metrics import METRICS
from kto_sweep.search.distributions import Categorical
from kto_sweep.search.space import Parameter
from kto_sweep.sweep.view import RUNNING, SweepView, TrialRecord
from kto_sweep.text import counted, show
from kto_sweep.trial import lookup

DOUBT = 0.05
"""Differences that chance makes this often, or oftener, are not told apart."""
EDGE = 0.05
"""So near to an end of a range counts as its end, as a share of the range."""
LEAST_SHARE = 0.05
"""A parameter of less importance is not worth a wider range."""
LONGEST_NAME = 60
"""Characters."""
MOST_TOLD = 5
"""Trials of a front that are named."""
FEWEST_VALUES = 3
"""Of fewer listed values each is at an end."""


@dataclass(frozen=True)
class Verdict:
    """Sentences, by the question that they answer."""

    best: str
    trade_off: str
    """Which trials no other beats in all of the sweep's objectives."""
    sure: str
    """How sure it is that the best trial is the best."""
    beware: tuple[str, ...]
    """Why the trials cannot be ranked with each other."""
    mattered: str
    """Which parameter mattered."""
    broke: tuple[str, ...]
    """Trials that failed and why, one sentence for each cause."""
    next: tuple[str, ...]
    """What to try."""

    def parts(self) -> list[tuple[str, tuple[str, ...]]]:
        """Headings and their sentences; those without an answer left out."""
        told = [
            ("Best", (self.best,)),
            ("Trade-off", (self.trade_off,)),
            ("How sure", (self.sure,)),
            ("Beware", self.beware),
            ("What mattered", (self.mattered,)),
            ("What broke", self.broke),
            ("Next", self.next),
        ]
        return [(heading, kept) for heading, texts in told if (kept := tuple(text for text in texts if text))]


def judge(
    view: SweepView,
    ranked: Sequence[Ranked],
    metric: str,
    goal: str,
    groups: Sequence[Replicates],
    importance: Importances,
    front: Collection[str] = (),
) -> Verdict:
    """The verdict; `groups` and `ranked` the best first, `front` the runs on that of the objectives."""
    return Verdict(
        best=_best(view, ranked, groups, metric, goal),
        trade_off=_trade_off(view, ranked, front),
        sure=_sure(groups),
        beware=tuple(differences(view.trained())),
        mattered=_mattered(importance, metric),
        broke=tuple(_broke(view)),
        next=tuple(_next(view, ranked, groups, importance, metric)),
    )


def _best(
    view: SweepView, ranked: Sequence[Ranked], groups: Sequence[Replicates], metric: str, goal: str
) -> str:
    if not groups:
        return f"No trial has logged {metric} yet." if ranked else "There is no trial yet."
    better = "higher" if goal == "maximize" else "lower"
    if len(groups[0].runs) > 1:
        best = groups[0]
        runs = ", ".join(item.trial.run_id for item in best.runs)
        return (
            f"{_settings(view, best.runs[0].trial.config)} has the best mean {metric}: {_mean(best)} "
            f"over {counted(len(best.runs), 'run')} ({runs}); {better} is better."
        )
    top = groups[0].runs[0]
    return (
        f"Run {_called(top.trial)} ({_settings(view, top.trial.config)}) has the best {metric}: "
        f"{groups[0].mean:.4g}; {better} is better.{_incomplete(top.trial)}"
    )


def _incomplete(trial: TrialRecord) -> str:
    """A warning where the trial's training has not come to its end."""
    if trial.state in RUNNING:
        return " It is still training."
    if trial.state in {"failed", "crashed"}:
        return (
            f" But it {trial.state}{f' ({trial.failure})' if trial.failure else ''}: it is not fully trained."
        )
    return ""


def _trade_off(view: SweepView, ranked: Sequence[Ranked], front: Collection[str]) -> str:
    """The front of the objectives, the best in the metric first."""
    if not view.objectives:
        return ""
    shown = [item.trial for item in ranked if item.trial.run_id in front]
    names = " and ".join(each.name for each in view.objectives)
    if not shown:
        return f"No finished trial has a value of {names} each."
    if len(shown) == 1:
        return f"Run {shown[0].run_id} is at least as good as any other in each of {names}."
    told = []
    for trial in shown[:MOST_TOLD]:
        values = ", ".join(f"{trial.value(each.name):.4g}" for each in view.objectives)
        told.append(f"{trial.run_id} ({values})")
    more = f" and {len(shown) - MOST_TOLD} more" if len(shown) > MOST_TOLD else ""
    return f"{len(shown)} trials are on the Pareto front of {names}: {', '.join(told)}{more}."


def _settings(view: SweepView, config: Mapping[str, Any]) -> str:
    names = [parameter.name for parameter in view.space.searched if parameter.path[-1] != SEED]
    return ", ".join(f"{name} {_short(lookup(config, name))}" for name in names) or "its configuration"


def _called(trial: TrialRecord) -> str:
    """Id and name; a name may hold anything, also what a terminal obeys."""
    name = "".join(char for char in trial.name if char.isprintable())[:LONGEST_NAME]
    return trial.run_id if name in {"", trial.run_id} else f'{trial.run_id} "{name}"'


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else show(value)


def _mean(each: Replicates) -> str:
    return f"{each.mean:.4g}" if each.error is None else f"{each.mean:.4g} ± {each.error:.2g}"


def _sure(groups: Sequence[Replicates]) -> str:
    """By Student's t on the difference of two means, with the noise pooled over all replicates."""
    if not groups:
        return ""
    if len(groups) == 1:
        return "It is the only configuration with a value, so there is nothing to compare it with."
    chance, rivals = noise(groups), _rivals(groups)
    lead = abs(groups[1].mean - groups[0].mean)
    if chance is None:
        return (
            f"It cannot be told: each configuration has run once. It leads by {lead:.2g}, and another seed "
            "may move a run by more or less than that."
        )
    basis = (
        f"by the spread between seeds (standard deviation {chance.deviation:.2g}, "
        f"{chance.freedom} degrees of freedom)"
    )
    if not rivals:
        return f"Fairly sure: {basis}, chance alone would rarely give its lead of {lead:.2g} over the next."
    return (
        f"Not sure: {counted(len(rivals), 'other configuration')} cannot be told apart from it {basis}; "
        f"it leads the next by {lead:.2g}."
    )


def _rivals(groups: Sequence[Replicates]) -> list[Replicates]:
    """The configurations that cannot be told apart from the best; empty where nothing ran twice."""
    chance = noise(groups)
    if chance is None:
        return []
    return [
        each for each in groups[1:] if _by_chance(groups[0], each, chance.deviation, chance.freedom) >= DOUBT
    ]


def _by_chance(one: Replicates, other: Replicates, deviation: float, freedom: int) -> float:
    """How often chance alone makes a lead this large."""
    from scipy.stats import t

    width = deviation * math.sqrt(1 / len(one.runs) + 1 / len(other.runs))
    if width == 0:
        return 0.0 if one.mean != other.mean else 1.0
    return float(t.sf(abs(one.mean - other.mean) / width, freedom))


def _mattered(importance: Importances, metric: str) -> str:
    if not importance.rows:
        return importance.note
    first = importance.rows[0]
    told = f"{first.name} mattered most for {metric}: {first.importance:.0%} of what the parameters explain"
    if first.correlation is not None:
        told += f" (correlation {first.correlation:+.2f})"
    return f"{told}. {importance.note}"


def _broke(view: SweepView) -> Iterator[str]:
    for cause, trials in _failures(view).items():
        found = _common_to(trials, view)
        yield f"{counted(len(trials), 'trial')} failed: {cause}{f' ({found})' if found else ''}."
    empty = [trial for trial in view.trials if trial.state == "finished" and trial.value(view.metric) is None]
    if empty:
        yield f"{counted(len(empty), 'trial')} finished without a finite value of {view.metric}."


def _failures(view: SweepView) -> dict[str, list[TrialRecord]]:
    """Failed trials by cause, the commonest first; those that were stopped on purpose are no failures."""
    causes: dict[str, list[TrialRecord]] = {}
    for trial in view.trials:
        if trial.failure and trial.failure not in {"killed", FailureCause.PREEMPTED}:
            causes.setdefault(trial.failure, []).append(trial)
    return dict(sorted(causes.items(), key=lambda pair: -len(pair[1])))


def _common_to(trials: Sequence[TrialRecord], view: SweepView) -> str:
    """A setting that all these trials share and no finished one has."""
    if len(trials) < 2:
        return _settings(view, trials[0].config)
    good = [trial for trial in view.trials if trial.state == "finished"]
    for parameter in view.space.searched:
        values = [lookup(trial.config, parameter.name) for trial in trials]
        others = [lookup(trial.config, parameter.name) for trial in good]
        if good and all(value == values[0] for value in values) and values[0] not in others:
            return f"all with {parameter.name} {_short(values[0])}, with which none finished"
    return ""


def _next(
    view: SweepView,
    ranked: Sequence[Ranked],
    groups: Sequence[Replicates],
    importance: Importances,
    metric: str,
) -> Iterator[str]:
    causes = _failures(view)
    if any(cause not in _OWN for cause in causes):
        yield f"Run those again that are not to blame for it: kto-sweep resume {view.ref.id} --failed"
    if (going := view.count(*RUNNING)) or not view.trials:
        left = f"{counted(going, 'trial')} still to end" if going else "no trial yet"
        yield f"Wait: {left}. To train here: kto-sweep agent {view.ref.id}"
    if FailureCause.OUT_OF_MEMORY in causes:
        yield "See which trials fit before the next sweep: kto-sweep plan FILE --gpu this"
    if groups:
        shares = {row.name: row.importance for row in importance.rows}
        config = groups[0].runs[0].trial.config
        for parameter in sorted(view.space.searched, key=lambda each: -shares.get(each.name, 0.0)):
            if shares.get(parameter.name, 1.0) >= LEAST_SHARE and (side := _edge(parameter, config)):
                at = _short(lookup(config, parameter.name))
                yield f"Widen {parameter.name}: the best value, {at}, is the {side} that was tried."
        if len(groups) > 1 and noise(groups) is None:
            yield "Run the best few with other seeds, to tell a lead from luck: seed: {values: [1, 2, 3]}"
        elif rivals := _rivals(groups):
            yield f"Run the best {len(rivals) + 1} with more seeds, or take the cheapest of them."
    known = METRICS.get(metric)
    if known is not None and known.caution:
        yield f"Judge by another metric than {metric}: {known.caution}."


_OWN = {str(cause) for cause in FailureCause if cause.is_the_trials_own}


def _edge(parameter: Parameter, config: Mapping[str, Any]) -> str:
    """`highest` or `lowest` where the value is at that end of what the sweep searches; else empty."""
    value = lookup(config, parameter.name)
    distribution = parameter.distribution
    if parameter.path[-1] == SEED or not _is_number(value) or "normal" in distribution.name:
        return ""
    if isinstance(distribution, Categorical):
        numbers = sorted({each for each in distribution.values if _is_number(each)})
        if len(numbers) < FEWEST_VALUES or len(numbers) < len(distribution.values):
            return ""
        return "highest" if value == numbers[-1] else "lowest" if value == numbers[0] and value > 0 else ""
    at = distribution.cdf(value)
    return "highest" if at > 1 - EDGE else "lowest" if at < EDGE and value > 0 else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
