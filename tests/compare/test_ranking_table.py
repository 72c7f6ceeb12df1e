"""The ranking table in terminals of any width."""

import math

import pytest
from test_verdict import LOSS, RATES, trial

from kto_sweep.cli.ranking_table import fit_columns
from kto_sweep.compare.comparison import compare
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView

WIDE, NARROW = 160, 60


def columns(width):
    logged = {"rewards/margins": math.inf, "kl": 0.1}
    view = SweepView(
        ref=SweepRef("local", "kto-sweep", "s"),
        url="",
        name="s",
        state="FINISHED",
        method="grid",
        metric=LOSS,
        goal="minimize",
        space=parse_space({"learning_rate": {"values": RATES}})[0],
        expected=3,
        trials=(trial("a", 0.1, **logged), trial("b", math.nan, state="failed", cause="diverged", **logged)),
    )
    comparison = compare(view)
    curves = {"a": {"rewards/margins": {"step": [0, 1], "time": [0, 1], "value": [0.0, 1.0]}}}
    return fit_columns(comparison, comparison.trials, comparison.parameters, curves, width)


def test_a_wide_terminal_shows_all_columns():
    shown, left_out = columns(WIDE)
    heads = [
        "",
        "run",
        "learning_rate",
        LOSS,
        "margins",
        "kl",
        "margins by step",
        "Pareto",
        "state",
        "minutes",
    ]
    assert [column.heading for column in shown] == heads
    assert left_out == []
    assert shown[8].cells == ("finished", "failed (diverged)")


def test_a_pipe_gets_all_columns():
    assert columns(None) == columns(WIDE)


def test_values_that_are_not_finite_are_shown():
    shown, _ = columns(WIDE)
    assert shown[3].cells == ("0.1", "nan")
    assert shown[4].cells == ("inf", "inf")


def test_a_narrow_terminal_folds_headings_and_drops_few_columns():
    shown, left_out = columns(NARROW)
    assert [column.heading for column in shown] == [
        "",
        "run",
        "learning_\nrate",
        "eval/\ncommon_\nloss",
        "margins",
        "state",
    ]
    assert left_out == ["margins by step", "kl", "minutes", "Pareto"]
    assert sum(column.width + 3 for column in shown) <= NARROW


@pytest.mark.parametrize("width", [20, 80, 100, 120])
def test_the_ranking_metric_is_never_dropped(width):
    shown, _ = columns(width)
    assert {"learning_rate", LOSS} <= {column.heading.replace("\n", "") for column in shown}
