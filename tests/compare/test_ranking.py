"""The ranking of trials."""

import math

import pytest

from kto_sweep.compare.as_data import csv_rows
from kto_sweep.compare.comparison import compare
from kto_sweep.compare.ranking import rank, searched_parameters
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.trial import lookup

LOSS = "eval/common_loss"


def trial(run_id, loss=None, state="finished", config=None, **summary):
    values = dict(summary) if loss is None else {LOSS: loss, **summary}
    return TrialRecord(run_id, run_id, state, config or {}, values, 60.0)


def view(*trials, parameters=None):
    space = parse_space(parameters)[0] if parameters else Space(())
    return SweepView(
        SweepRef("local", "kto-sweep", "s"), "", "s", "RUNNING", "grid", LOSS, "minimize", space, None, trials
    )


@pytest.mark.parametrize(("goal", "order"), [("minimize", "bac"), ("maximize", "cab")])
def test_the_best_is_first(goal, order):
    trials = (trial(name, loss, config={"beta": loss}) for name, loss in (("a", 0.3), ("b", 0.1), ("c", 0.5)))
    ranked = rank(view(*trials), LOSS, goal).trials
    assert "".join(item.trial.run_id for item in ranked) == order
    assert [item.rank for item in ranked] == [1, 2, 3]


def test_trials_without_a_finite_value_come_last_and_have_no_rank():
    broken = [trial("nan", math.nan), trial("inf", math.inf), trial("none"), trial("text", "0.1")]
    ranked = rank(view(*broken, trial("good", 0.4)), LOSS, "minimize").trials
    assert [(item.rank, item.trial.run_id) for item in ranked] == [
        (1, "good"),
        (None, "inf"),
        (None, "nan"),
        (None, "none"),
        (None, "text"),
    ]


def test_only_searched_parameters_are_compared():
    config = {"learning_rate": 1e-6, "beta": 0.1, "lora": {"r": 8}}
    parameters = {
        "learning_rate": {"values": [1e-6, 1e-5]},
        "beta": {"value": 0.1},
        "lora": {"parameters": {"r": {"values": [8, 16]}}},
    }
    assert searched_parameters(view(trial("a", config=config), parameters=parameters)) == (
        "learning_rate",
        "lora.r",
    )
    assert lookup(config, "lora.r") == 8


def test_a_metric_that_no_trial_has_is_not_shown():
    assert compare(view(trial("a", 0.1, kl=0.0))).metrics == (LOSS, "kl")


def test_csv_has_a_row_for_each_trial_and_names_the_failure():
    failed = trial("b", state="failed", config={"beta": 0.2}, **{"failure/cause": "diverged", "_step": 3})
    rows = csv_rows(compare(view(failed, trial("a", 0.1, config={"beta": 0.1}))), ("beta",))
    assert rows == [
        ["rank", "run_id", "name", "state", "failure", "progress", "minutes", "beta", LOSS],
        [1, "a", "a", "finished", "", "", 1.0, 0.1, 0.1],
        [None, "b", "b", "failed", "diverged", "step 3", 1.0, 0.2, None],
    ]
