"""Alert rules: parsed, raised once, and sent from a sweep file to the agents."""

import math

import pytest

from kto_sweep.alerts import (
    MAX_ALERTS,
    PARAMETER,
    SUMMARY,
    AlertLevel,
    RuleChecker,
    RunAlert,
    alerts_for_summary,
    alerts_of,
    parse_rule,
    rules_of,
)
from kto_sweep.errors import SweepFileError, UsageError
from kto_sweep.sweep_file.sweep_config import load_sweep_config

FILE = """
method: grid
parameters:
  learning_rate: {values: [1.0e-6, 1.0e-5]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kl_raw > 10", "kl_raw > 10"),
        (" eval/auc<=.5 ", "eval/auc <= 0.5"),
        ("grad_norm>=1e3", "grad_norm >= 1000"),
    ],
)
def test_rules_are_parsed(text, shown):
    assert str(parse_rule(text)) == shown


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("kl_raw", "is not an alert", "kl_raw > 10"),
        ("kl_raw > 10 > 3", "is not an alert", "kl_raw > 10"),
        ("kl_rw > 10", "kl_rw is not a metric", "kl_raw > 10"),
        ("auc < 0.5", "auc is not a metric", "eval/auc < 0.5"),
        ("kl_raw > ten", "ten is not a number", "kl_raw > 10"),
        ("failure/cause > 1", "failure/cause is not a metric", "one of loss"),
    ],
)
def test_invalid_rules_say_what_to_type(text, says, hint):
    with pytest.raises(UsageError, match=says) as error:
        parse_rule(text)
    assert error.value.hint.startswith(hint)


def test_a_rule_raises_one_alert_per_run():
    rules = RuleChecker([parse_rule("kl_raw > 10"), parse_rule("loss < 0.1")])
    assert rules.check(1, {"kl_raw": 10.0, "loss": math.nan}) == []
    assert rules.check(2, {"kl_raw": 12.5}) == [RunAlert(AlertLevel.WARN, "kl_raw > 10", "kl_raw is 12.5", 2)]
    assert rules.check(3, {"kl_raw": math.inf, "loss": 0.05}) == [
        RunAlert(AlertLevel.WARN, "loss < 0.1", "loss is 0.05", 3)
    ]
    assert rules.check(4, {"kl_raw": 99.0, "loss": 0.0}) == []


def test_the_summary_keeps_the_last_alerts_and_other_entries_are_skipped():
    raised = [RunAlert(AlertLevel.ERROR, "diverged", f"number {step}", step) for step in range(30)]
    entries = alerts_for_summary(raised)
    assert entries[-1] == {"level": "ERROR", "title": "diverged", "text": "number 29", "step": 29}
    read = alerts_of({SUMMARY: [*entries, "text", {"level": "LOUD"}, {"level": "WARN", "title": "no step"}]})
    assert read == tuple(raised[-MAX_ALERTS:])
    assert alerts_of({SUMMARY: '["text"]'}) == ()


def test_a_files_rules_are_registered_as_a_parameter_and_reach_the_trials(tmp_path):
    (tmp_path / "s.yaml").write_text(FILE + 'kto_sweep:\n  alerts: ["kl_raw > 10", "loss>2"]\n')
    sweep = load_sweep_config(tmp_path / "s.yaml")
    assert "kto_sweep" not in sweep.config
    assert [parameter.name for parameter in sweep.space.parameters if parameter.name == PARAMETER] == []
    given = {PARAMETER: sweep.config["parameters"][PARAMETER]["value"]}
    assert rules_of(given) == (parse_rule("kl_raw > 10"), parse_rule("loss > 2"))
    assert rules_of({}) == ()


@pytest.mark.parametrize(
    ("block", "line", "hint"),
    [
        ('  alerts: ["kl_rw > 10"]', 8, '"kl_raw > 10"'),
        ("  alerts: kl_raw > 10", 8, 'alerts: ["kl_raw > 10"]'),
        ("  alert: []", 8, "alerts"),
    ],
)
def test_an_invalid_block_is_reported_with_its_line(tmp_path, block, line, hint):
    (tmp_path / "s.yaml").write_text(f"{FILE}kto_sweep:\n{block}\n")
    with pytest.raises(SweepFileError) as error:
        load_sweep_config(tmp_path / "s.yaml")
    [problem] = error.value.problems
    assert f"s.yaml:{line} kto_sweep." in problem.where
    assert problem.hint == hint
