"""A comparison as plain data: for `compare --json`, the page and the report. Pure."""

from dataclasses import asdict
from typing import Any

from kto_sweep.compare.comparison import Comparison
from kto_sweep.compare.confidence import Certainty
from kto_sweep.compare.ranking import Configuration, RankedTrial
from kto_sweep.compare.sentences import settings_text
from kto_sweep.compare.verdict import Verdict
from kto_sweep.text import printable
from kto_sweep.trial import lookup

Data = dict[str, Any]


def as_data(comparison: Comparison, top: int | None = None) -> Data:
    """The whole comparison, with at most `top` trials."""
    return {
        "sweep": str(comparison.view.ref),
        "metric": comparison.metric,
        "goal": comparison.goal,
        "objectives": [
            {"name": objective.name, "goal": objective.goal} for objective in comparison.view.objectives
        ],
        "parameters": comparison.parameters,
        "verdict": verdict_data(comparison),
        "importance": importance_data(comparison),
        "configurations": [_configuration(each) for each in comparison.configurations],
        "trials": [
            {
                **trial_data(item),
                **{front.key: item.trial.run_id in front.run_ids for front in comparison.fronts},
                "config": item.trial.config,
                "summary": item.trial.summary,
            }
            for item in comparison.trials[:top]
        ],
    }


def verdict_data(comparison: Comparison) -> Data:
    """The verdict: what won, how sure that is, what next, and the same in sentences.

    `winner` is null if nothing ranks, or if trials were judged on different rows; `rankings` has the verdict
    of each set of rows.
    """
    verdict = comparison.verdict
    return {
        **(_verdict(verdict) if verdict is not None else _NO_VERDICT),
        "rankings": [{"judged_on": each.group, **_verdict(each)} for each in comparison.verdicts],
        "next": [asdict(step) for step in comparison.next_steps],
        "sentences": [{"heading": heading, "sentences": texts} for heading, texts in comparison.sentences],
    }


_NO_VERDICT: Data = {
    "winner": None,
    "value": None,
    "interval": None,
    "certainty": Certainty.UNKNOWN,
    "tied": [],
    "run_ids": [],
}


def _verdict(verdict: Verdict) -> Data:
    return {
        "winner": verdict.winner.settings,
        "value": verdict.winner.mean,
        "interval": verdict.interval,
        "certainty": verdict.certainty,
        "tied": [each.settings for each in verdict.tied],
        "run_ids": [trial.run_id for trial in verdict.winner.trials],
    }


def _configuration(configuration: Configuration) -> Data:
    return {
        "rank": configuration.rank,
        "judged_on": configuration.group,
        "settings": configuration.settings,
        "label": settings_text(configuration.settings),
        "mean": configuration.mean,
        "values": configuration.values,
        "run_ids": [trial.run_id for trial in configuration.trials],
    }


def importance_data(comparison: Comparison) -> Data:
    """The importance of each parameter, and how reliable it is."""
    table = comparison.importance
    return {"parameters": [asdict(row) for row in table.rows], "note": table.note}


def trial_data(item: RankedTrial) -> Data:
    """A trial's place in the sweep, without its configuration and summary."""
    trial = item.trial
    return {
        "rank": item.rank,
        "value": item.value,
        "standing": item.standing,
        "progress": item.progress,
        "judged_on": item.group,
        "run_id": trial.run_id,
        "name": trial.name,
        "state": item.state,
        "failure": trial.failure,
        "message": trial.failure_message,
        "seconds": trial.seconds,
    }


def csv_rows(comparison: Comparison, parameters: tuple[str, ...], top: int | None = None) -> list[list[Any]]:
    """Header and one row for each trial: rank, run, state, failure, progress, minutes, parameters, metrics.

    Texts are safe to open in a spreadsheet and to print.
    If trials were judged on different rows, also `judged_on`, the rows on which the trial has its rank.
    """
    shown = comparison.trials[:top]
    judged = ["judged_on"] if any(item.group for item in comparison.trials) else []
    fields = ["rank", *judged, "run_id", "name", "state", "failure", "progress"]
    rows: list[list[Any]] = [[*fields, "minutes", *parameters, *comparison.metrics]]
    for item in shown:
        data, trial = trial_data(item), item.trial
        minutes = None if trial.seconds is None else round(trial.seconds / 60, 2)
        rows.append(
            [*(data[name] for name in fields), minutes]
            + [lookup(trial.config, name) for name in parameters]
            + [trial.summary.get(name) for name in comparison.metrics]
        )
    return [[_csv_cell(value) for value in row] for row in rows]


def _csv_cell(value: Any) -> Any:
    """The value; a text that a spreadsheet would evaluate as a formula gets a leading apostrophe."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return printable(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)
