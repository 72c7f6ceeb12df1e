"""The verdict on a sweep in sentences: best trial, confidence, importance, failures and next steps.

A pure function of a sweep and its ranking; terminal and report show the same sentences.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.compare.eval_groups import several_rankings
from kto_sweep.compare.importance import ImportanceTable
from kto_sweep.compare.ranking import RankedTrial
from kto_sweep.compare.seed_groups import SEED, SeedGroup, SeedNoise, seed_noise
from kto_sweep.errors import FailureCause
from kto_sweep.fingerprints import differences
from kto_sweep.metrics import METRICS
from kto_sweep.search.distributions import Categorical
from kto_sweep.search.space import Parameter
from kto_sweep.sweep.view import UNFINISHED, SweepView, TrialRecord
from kto_sweep.text import counted, show
from kto_sweep.trial import lookup

ONE_RANKING = (
    "For one ranking, hold out the same rows for all trials: eval_dataset: FILE, and one max_length."
)
SIGNIFICANCE = 0.05
"""Two means differ if the probability of such a difference from seed noise alone is below this."""
EDGE = 0.05
"""A value this close to an end of a range, as a share of the range, counts as at the end."""
MIN_IMPORTANCE = 0.05
"""The range of a less important parameter is not worth widening."""
MAX_NAME = 60
"""Maximum characters of a run's name."""
MAX_LISTED = 5
"""Maximum number of trials listed for a Pareto front, and of configurations to repeat with more seeds."""
MIN_VALUES = 3
"""With fewer listed values, every value is at an end."""


@dataclass(frozen=True)
class Verdict:
    """The conclusions from a sweep, in sentences."""

    best: tuple[str, ...]
    """The best trial; one sentence for each ranking, if trials were judged on different rows."""
    trade_off: str
    """The trials on the Pareto front of the sweep's objectives; empty for a single objective."""
    confidence: tuple[str, ...]
    """How certain each of the best configurations is."""
    warnings: tuple[str, ...]
    """Why some trials are not comparable."""
    importance: str
    """Which parameter matters most."""
    failures: tuple[str, ...]
    """One sentence for each cause of failure."""
    next_steps: tuple[str, ...]

    def parts(self) -> list[tuple[str, tuple[str, ...]]]:
        """Headings with their sentences, without empty parts."""
        parts = [
            ("Best", self.best),
            ("Trade-off", (self.trade_off,)),
            ("Confidence", self.confidence),
            ("Warning", self.warnings),
            ("Importance", (self.importance,)),
            ("Failures", self.failures),
            ("Next", self.next_steps),
        ]
        return [
            (heading, kept) for heading, texts in parts if (kept := tuple(text for text in texts if text))
        ]


def make_verdict(
    view: SweepView,
    ranked: Sequence[RankedTrial],
    metric: str,
    goal: str,
    groups: Sequence[SeedGroup],
    importance: ImportanceTable,
    front: Collection[str] = (),
) -> Verdict:
    """The verdict; `ranked` and `groups` best first, `front` the run ids on the objectives' Pareto front."""
    rankings = _by_rows(groups)
    largest = max(rankings.values(), key=len, default=())
    return Verdict(
        best=tuple(
            _judged_on(name) + _best(view, ranked, members, metric, goal)
            for name, members in rankings.items()
        )
        or (_best(view, ranked, groups, metric, goal),),
        trade_off=_trade_off(view, ranked, front),
        confidence=tuple(_judged_on(name) + _confidence(members) for name, members in rankings.items()),
        warnings=(*several_rankings(metric, _rows_of(ranked)), *differences(view.trained())),
        importance=_importance(importance, metric),
        failures=tuple(_failures(view)),
        next_steps=tuple(_next_steps(view, largest, importance, metric)),
    )


def _by_rows(groups: Sequence[SeedGroup]) -> dict[str, Sequence[SeedGroup]]:
    """The configurations of each eval_groups group, best first."""
    rankings: dict[str, Sequence[SeedGroup]] = {}
    for group in groups:
        rankings[group.group] = (*rankings.get(group.group, ()), group)
    return rankings


def _rows_of(ranked: Sequence[RankedTrial]) -> list[str]:
    """The eval_groups groups of the ranked trials."""
    return list(dict.fromkeys(item.group for item in ranked if item.rank is not None))


def _judged_on(name: str) -> str:
    return f"Judged on {name}: " if name else ""


def _best(
    view: SweepView, ranked: Sequence[RankedTrial], groups: Sequence[SeedGroup], metric: str, goal: str
) -> str:
    if not groups:
        return f"No trial has logged {metric} yet." if ranked else "No trial yet."
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
        f"Run {_id_and_name(top.trial)} ({_settings(view, top.trial.config)}) has the best {metric}: "
        f"{groups[0].mean:.4g}; {better} is better.{_incomplete(top.trial)}"
    )


def _incomplete(trial: TrialRecord) -> str:
    """A warning if the trial is not fully trained; else empty."""
    if trial.state in UNFINISHED:
        return " It is still training."
    if trial.state in {"failed", "crashed"}:
        return (
            f" It {trial.state}{f' ({trial.failure})' if trial.failure else ''}, so it is not fully trained."
        )
    return ""


def _trade_off(view: SweepView, ranked: Sequence[RankedTrial], front: Collection[str]) -> str:
    """The Pareto front of the objectives, best in the metric first."""
    if not view.objectives:
        return ""
    shown = [item.trial for item in ranked if item.trial.run_id in front]
    names = " and ".join(objective.name for objective in view.objectives)
    if not shown:
        return f"No finished trial has logged all of {names}."
    if len(shown) == 1:
        return f"Run {shown[0].run_id} is at least as good as every other run in {names}."
    listed = []
    for trial in shown[:MAX_LISTED]:
        values = ", ".join(f"{trial.value(objective.name):.4g}" for objective in view.objectives)
        listed.append(f"{trial.run_id} ({values})")
    more = f" and {len(shown) - MAX_LISTED} more" if len(shown) > MAX_LISTED else ""
    return f"{len(shown)} trials are on the Pareto front of {names}: {', '.join(listed)}{more}."


def _settings(view: SweepView, config: Mapping[str, Any]) -> str:
    names = [parameter.name for parameter in view.space.searched if parameter.path[-1] != SEED]
    return ", ".join(f"{name} {_short(lookup(config, name))}" for name in names) or "its configuration"


def _id_and_name(trial: TrialRecord) -> str:
    # A run's name is untrusted and may hold escape sequences for the terminal.
    name = "".join(char for char in trial.name if char.isprintable())[:MAX_NAME]
    return trial.run_id if name in {"", trial.run_id} else f'{trial.run_id} "{name}"'


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else show(value)


def _mean(group: SeedGroup) -> str:
    error = "" if group.standard_error is None else f" ± {group.standard_error:.2g}"
    return f"{group.mean:.4g}{error}"


def _confidence(groups: Sequence[SeedGroup]) -> str:
    """How certain the lead is: Student's t-test on two means, with noise pooled over all configurations."""
    if not groups:
        return ""
    if len(groups) == 1:
        return "Only one configuration has a value, so there is nothing to compare it with."
    noise, ties = seed_noise(groups), _ties(groups)
    next_best = ties[0] if ties else groups[1]
    lead = abs(next_best.mean - groups[0].mean)
    if noise is None:
        return f"Unknown: each configuration ran once, so a lead of {lead:.2g} may be seed noise."
    basis = f"(standard deviation {noise.deviation:.2g}, {noise.degrees_of_freedom} degrees of freedom)"
    if not ties:
        return f"Fairly sure: the lead ({lead:.2g}) is unlikely to be seed noise {basis}."
    return f"A tie of {len(ties) + 1}: the lead ({lead:.2g}) is within seed noise {basis}."


def _ties(groups: Sequence[SeedGroup]) -> list[SeedGroup]:
    """The configurations whose distance to the best may be seed noise; empty if each ran once."""
    noise = seed_noise(groups)
    if noise is None:
        return []
    return [group for group in groups[1:] if _p_value(groups[0], group, noise) >= SIGNIFICANCE]


def _p_value(one: SeedGroup, other: SeedGroup, noise: SeedNoise) -> float:
    """Probability of a lead this large from seed noise alone."""
    from scipy.stats import t

    width = noise.deviation * math.sqrt(1 / len(one.runs) + 1 / len(other.runs))
    if width == 0:
        return 0.0 if one.mean != other.mean else 1.0
    return float(t.sf(abs(one.mean - other.mean) / width, noise.degrees_of_freedom))


def _importance(importance: ImportanceTable, metric: str) -> str:
    if not importance.rows:
        return importance.note
    first = importance.rows[0]
    sentence = f"{first.name} matters most for {metric}: {first.importance:.0%} of the importance"
    if first.correlation is not None:
        sentence += f" (correlation {first.correlation:+.2f})"
    return f"{sentence}. {importance.note}"


def _failures(view: SweepView) -> Iterator[str]:
    for cause, trials in _failed_by_cause(view).items():
        common = _common_to(trials, view)
        yield f"{counted(len(trials), 'trial')} failed: {cause}{f' ({common})' if common else ''}."
    empty = [trial for trial in view.trials if trial.state == "finished" and trial.value(view.metric) is None]
    if empty:
        yield f"{counted(len(empty), 'trial')} finished without a finite value of {view.metric}."


def _failed_by_cause(view: SweepView) -> dict[str, list[TrialRecord]]:
    """Failed trials by cause, the most frequent first; trials stopped on purpose are not failures."""
    causes: dict[str, list[TrialRecord]] = {}
    for trial in view.trials:
        if trial.failure and trial.failure not in {"killed", FailureCause.PREEMPTED}:
            causes.setdefault(trial.failure, []).append(trial)
    return dict(sorted(causes.items(), key=lambda pair: -len(pair[1])))


def _common_to(trials: Sequence[TrialRecord], view: SweepView) -> str:
    """A setting that all these trials and no finished trial have; empty if there is none."""
    if len(trials) < 2:
        return _settings(view, trials[0].config)
    finished = [trial for trial in view.trials if trial.state == "finished"]
    for parameter in view.space.searched:
        values = [lookup(trial.config, parameter.name) for trial in trials]
        good_values = [lookup(trial.config, parameter.name) for trial in finished]
        if finished and all(value == values[0] for value in values) and values[0] not in good_values:
            return f"all with {parameter.name} {_short(values[0])}; no trial with it finished"
    return ""


def _next_steps(
    view: SweepView,
    groups: Sequence[SeedGroup],
    importance: ImportanceTable,
    metric: str,
) -> Iterator[str]:
    causes = _failed_by_cause(view)
    if any(cause not in _REPEATED for cause in causes):
        yield f"Retry trials that failed for external reasons: kto-sweep resume {view.ref.id} --failed"
    if (unfinished := view.count(*UNFINISHED)) or not view.trials:
        state = f"Unfinished: {counted(unfinished, 'trial')}" if unfinished else "No trial yet"
        yield f"{state}. To train here: kto-sweep agent {view.ref.id}"
    if FailureCause.OUT_OF_MEMORY in causes:
        yield "Check which trials fit before the next sweep: kto-sweep plan FILE --gpu this"
    if groups:
        shares = {row.name: row.importance for row in importance.rows}
        config = groups[0].runs[0].trial.config
        for parameter in sorted(view.space.searched, key=lambda each: -shares.get(each.name, 0.0)):
            if shares.get(parameter.name, 1.0) >= MIN_IMPORTANCE and (end := _range_end(parameter, config)):
                value = _short(lookup(config, parameter.name))
                yield f"Widen {parameter.name}: the best value ({value}) is the {end} tried."
        if len(groups) > 1 and seed_noise(groups) is None:
            top = min(MAX_LISTED, len(groups))
            yield f"Run the top {top} with 2 more seeds: seed: {{values: [1, 2, 3]}}"
        elif ties := _ties(groups):
            yield f"Run the top {len(ties) + 1} with more seeds, or choose the cheapest of them."
    built_in = METRICS.get(metric)
    if built_in is not None and built_in.caution:
        yield f"Rank by a metric other than {metric}: {built_in.caution}."


_REPEATED = {str(cause) for cause in FailureCause if not cause.is_retried}
"""Causes that would be the same after another attempt."""


def _range_end(parameter: Parameter, config: Mapping[str, Any]) -> str:
    """`highest` or `lowest` if the value is at that end of the searched range; else empty."""
    value = lookup(config, parameter.name)
    distribution = parameter.distribution
    if parameter.path[-1] == SEED or not _is_number(value) or "normal" in distribution.name:
        return ""
    if isinstance(distribution, Categorical):
        numbers = sorted({number for number in distribution.values if _is_number(number)})
        if len(numbers) < MIN_VALUES or len(numbers) < len(distribution.values):
            return ""
        return "highest" if value == numbers[-1] else "lowest" if value == numbers[0] and value > 0 else ""
    share = distribution.cdf(value)
    return "highest" if share > 1 - EDGE else "lowest" if share < EDGE and value > 0 else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
