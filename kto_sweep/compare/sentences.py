"""The verdict on a sweep in sentences, the same on page, terminal and report. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kto_sweep.alerts import AlertLevel, RunAlert
from kto_sweep.compare.confidence import Certainty
from kto_sweep.compare.eval_groups import several_rankings
from kto_sweep.compare.importance import ImportanceTable
from kto_sweep.compare.next_steps import NextStep
from kto_sweep.compare.ranking import RankedTrial, Ranking, Standing, is_seed, searched_parameters
from kto_sweep.compare.verdict import Verdict
from kto_sweep.errors import FailureCause
from kto_sweep.fingerprints import differences
from kto_sweep.search.distributions import value_key
from kto_sweep.search.space import own_name
from kto_sweep.sweep.view import UNSTABLE, SweepView, TrialRecord
from kto_sweep.text import counted, number
from kto_sweep.trial import lookup

MAX_LISTED = 5
"""Maximum number of trials or configurations that a sentence lists."""
MAX_IMPORTANT = 3
"""Maximum number of parameters that sentences speak of; tables list all."""

Sentences = tuple[tuple[str, tuple[str, ...]], ...]
"""Headings with their sentences."""


def sentences(
    view: SweepView,
    ranking: Ranking,
    verdicts: Sequence[Verdict],
    importance: ImportanceTable,
    front: Sequence[TrialRecord],
    steps: Sequence[NextStep],
    metric: str,
    goal: str,
) -> Sentences:
    """All parts of the verdict that have something to say.

    `front` has the trials on the Pareto front of the sweep's objectives, best in the metric first.
    """
    groups = [verdict.group for verdict in verdicts]
    parts = {
        "Best": [_judged_on(each) + _best(each, metric, goal) for each in verdicts]
        or [_no_best(ranking, metric)],
        "Confidence": [_judged_on(each) + _confidence(each) for each in verdicts],
        "Trade-off": _trade_off(view, front),
        "Unfinished": _unfinished(ranking, metric, goal),
        "Importance": [*(row.sentence for row in importance.rows[:MAX_IMPORTANT]), importance.note],
        "Failures": _failures(view, ranking, metric),
        "Alerts": alert_sentences(view),
        "Warning": [*several_rankings(metric, groups), *differences(view.trained())],
        "Next": [str(step) for step in steps],
    }
    return tuple((heading, kept) for heading, texts in parts.items() if (kept := tuple(filter(None, texts))))


def settings_text(settings: Mapping[str, Any]) -> str:
    """`learning_rate 1e-05, beta 0.1`; without the group of a sweep that `replicate` wrote."""
    return (
        ", ".join(f"{own_name(name)} {number(value)}" for name, value in settings.items())
        or "its configuration"
    )


def value_text(verdict: Verdict) -> str:
    """`0.4006 [0.395, 0.406] over 3 seeds`: the winner's mean, its interval if known, and its trials."""
    interval = ""
    if verdict.interval is not None:
        interval = f" [{number(verdict.interval[0])}, {number(verdict.interval[1])}]"
    count = len(verdict.winner.trials)
    return f"{number(verdict.winner.mean)}{interval}{f' over {count} seeds' if count > 1 else ''}"


def _judged_on(verdict: Verdict) -> str:
    return f"Judged on {verdict.group}: " if verdict.group else ""


def _no_best(ranking: Ranking, metric: str) -> str:
    if not ranking.trials:
        return "No trial yet."
    return f"No trial has finished with a value of {metric} yet."


def _best(verdict: Verdict, metric: str, goal: str) -> str:
    winner, better = verdict.winner, "higher" if goal == "maximize" else "lower"
    runs = _listed([trial.label for trial in winner.trials])
    mean = "mean " if len(winner.trials) > 1 else ""
    return (
        f"{settings_text(winner.settings)} has the best {mean}{metric}: {value_text(verdict)}; "
        f"{better} is better ({'runs' if len(winner.trials) > 1 else 'run'} {runs})."
    )


def _confidence(verdict: Verdict) -> str:
    """How sure the lead is, and on what that rests."""
    noise, lead = verdict.noise, verdict.lead
    if lead is None:
        return "Unknown: only one configuration has finished, so there is nothing to compare it with."
    if noise is None:
        return f"Unknown: each configuration ran once, so a lead of {number(lead)} may be seed noise."
    measured = (
        "in earlier sweeps of this model, data and budget" if noise.from_earlier_sweeps else "in this sweep"
    )
    basis = (
        f"another seed changes a trial by {number(noise.deviation)} (standard deviation {measured}, "
        f"{counted(noise.degrees_of_freedom, 'degree')} of freedom)"
    )
    if verdict.certainty is Certainty.CLEAR:
        return (
            f"Clear: the lead over the next configuration, {number(lead)}, is more than seed noise: {basis}."
        )
    others = _listed([settings_text(each.settings) for each in verdict.tied], "; ")
    return (
        f"A tie of {len(verdict.tied) + 1}: the lead, {number(lead)}, may be seed noise: {basis}. "
        f"Tied with it: {others}."
    )


def _trade_off(view: SweepView, front: Sequence[TrialRecord]) -> Iterator[str]:
    """The Pareto front of the objectives."""
    if not view.objectives:
        return
    names = " and ".join(objective.name for objective in view.objectives)
    if not front:
        yield f"No finished trial has logged all of {names}."
        return
    if len(front) == 1:
        yield f"Run {front[0].label} is at least as good as every other finished run in {names}."
        return
    listed = []
    for trial in front:
        values = (trial.value(each.name, maximize=each.maximize) for each in view.objectives)
        listed.append(f"{trial.label}: {', '.join(map(number, values))}")
    yield f"{len(front)} trials are on the Pareto front of {names}: {_listed(listed, '; ')}."


def _unfinished(ranking: Ranking, metric: str, goal: str) -> Iterator[str]:
    """What trials that do not rank yet have reached so far."""
    for standing in (Standing.UNFINISHED, Standing.STOPPED):
        items = [item for item in ranking.trials if item.standing is standing]
        if not items:
            continue
        text = (
            f"{counted(len(items), 'trial')} {'unfinished' if standing is Standing.UNFINISHED else standing}"
        )
        valued = [item for item in items if item.value is not None]
        if valued:
            pick = max if goal == "maximize" else min
            best = pick(valued, key=lambda item: item.value or 0.0)
            where = f" at {best.progress}" if best.progress else ""
            text += f", the best at {metric} {number(best.value)}{where} (run {best.trial.label})"
        yield f"{text}. Unfinished trials do not rank."


def _failures(view: SweepView, ranking: Ranking, metric: str) -> Iterator[str]:
    by_cause: dict[str, list[RankedTrial]] = {}
    for item in ranking.trials:
        if item.standing is Standing.FAILED and item.trial.failure != FailureCause.PREEMPTED:
            by_cause.setdefault(item.trial.failure, []).append(item)
    for cause, items in sorted(by_cause.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        common = _common_to(view, [item.trial for item in items])
        # An unstable trial took its last step: "failed" would contradict its state.
        what = "finished, but unstable" if cause == UNSTABLE else f"failed: {cause}"
        yield f"{counted(len(items), 'trial')} {what}{f' ({common})' if common else ''}."
    empty = sum(item.standing is Standing.WITHOUT_VALUE for item in ranking.trials)
    if empty:
        yield f"{counted(empty, 'trial')} finished without a finite value of {metric}."


def alert_sentences(view: SweepView) -> list[str]:
    """For each kind of alert, the worst level first: its title, its trials, and the text of one of them.

    Trials that failed are left out: their failure says more. Of an unstable trial only the error is in.
    """
    raised: dict[tuple[AlertLevel, str], dict[str, RunAlert]] = {}
    alerted = sorted((trial for trial in view.trials if trial.alerts), key=lambda trial: trial.run_id)
    labels = {trial.run_id: trial.label for trial in alerted}
    for trial in alerted:
        for alert in trial.alerts:
            if not trial.failure or (trial.failure == UNSTABLE and alert.level is AlertLevel.ERROR):
                raised.setdefault((alert.level, alert.title), {})[trial.run_id] = alert
    order = list(AlertLevel)
    texts = []
    for (level, title), alerts in sorted(
        raised.items(), key=lambda entry: (-order.index(entry[0][0]), entry[0][1])
    ):
        runs = _listed([labels[run_id] for run_id in alerts])
        run_id, alert = next(iter(alerts.items()))
        example = (
            f"for example at step {alert.step} of {labels[run_id]}"
            if len(alerts) > 1
            else f"at step {alert.step}"
        )
        texts.append(
            _printable(
                f"{level.label}: {title} in {counted(len(alerts), 'trial')} ({runs}), {example}: {alert.text}"
            )
        )
    return texts


def _printable(text: str) -> str:
    """The text, which may come from another program, without terminal control characters."""
    return "".join(char for char in text if char.isprintable())


def _common_to(view: SweepView, trials: Sequence[TrialRecord]) -> str:
    """A setting that all these trials and no finished trial have; empty if there is none."""
    names = [name for name in searched_parameters(view) if not is_seed(name)]
    if len(trials) == 1:
        return f"{trials[0].label}: {settings_text({name: lookup(trials[0].config, name) for name in names})}"
    finished = [trial for trial in view.trials if trial.state == "finished" and not trial.failure]
    for name in names:
        values = {value_key(value): value for value in (lookup(trial.config, name) for trial in trials)}
        good_values = {value_key(lookup(trial.config, name)) for trial in finished}
        if finished and len(values) <= MAX_LISTED and not values.keys() & good_values:
            shown = " or ".join(number(value) for value in values.values())
            return (
                f"all with {name} {shown}; no trial with {'it' if len(values) == 1 else 'these'} ended well"
            )
    return ""


def _listed(texts: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return separator.join(texts[:MAX_LISTED]) + more
