"""Observations of a sweep's runs for Bayesian search."""

from typing import Any

import pytest
from server_harness import ServerHarness

from kto_sweep.search.bayes import Observation
from kto_sweep.server.observations import observations
from kto_sweep.server.store import sweeps
from kto_sweep.server.sweep_rules import Impute, SweepMetric, read_rules

BAYES: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 0.0, "max": 1.0}},
}


def bayes(harness: ServerHarness, **metric: Any) -> str:
    return harness.sweep({**BAYES, "metric": {**BAYES["metric"], **metric}})


def observed(harness: ServerHarness, sweep: str) -> list[Observation]:
    connection = harness.server.database.reader()
    row = connection.execute("SELECT id FROM sweep WHERE name = ?", (sweep,)).fetchone()[0]
    record = sweeps.get(connection, row)
    assert record is not None
    metric = read_rules(record.config).metric
    assert metric is not None
    return observations(connection, row, metric)


def log_run(harness: ServerHarness, sweep: str, name: str, *losses: float, exitcode: int | None = 0) -> None:
    """A run added to the sweep manually; without an exit code it keeps running."""
    harness.start_run(name, sweep=sweep, config='{"lr": {"value": 0.5}, "_wandb": {"value": {}}}')
    harness.log(name, 0, *({"loss": loss} for loss in losses))
    if exitcode is not None:
        harness.stream(name, complete=True, exitcode=exitcode)


def values(harness: ServerHarness, sweep: str) -> list[float | None]:
    return [run.value for run in observed(harness, sweep)]


def test_finished_run_has_its_best_value(harness: ServerHarness) -> None:
    low, high = bayes(harness), bayes(harness, goal="maximize")
    for sweep in (low, high):
        log_run(harness, sweep, f"r{sweep}", 3.0, 1.0, float("nan"), 2.0)
    assert observed(harness, low) == [Observation({"lr": 0.5}, 1.0, False)]
    assert observed(harness, high) == [Observation({"lr": 0.5}, 3.0, False)]


def test_value_in_the_summary_is_observed_too(harness: ServerHarness) -> None:
    sweep = bayes(harness)
    log_run(harness, sweep, "r", 3.0, exitcode=None)
    harness.stream("r", files={"wandb-summary.json": {"offset": 0, "content": ['{"loss": 0.5}']}})
    harness.stream("r", complete=True)
    assert values(harness, sweep) == [0.5]


def test_suggested_config_is_observed_not_the_scripts_changes(harness: ServerHarness) -> None:
    sweep = bayes(harness)
    command = harness.beat(harness.agent(sweep))[0]
    harness.start_run(command["run_id"], config='{"lr": {"value": 99}}')
    assert observed(harness, sweep) == [Observation({"lr": command["args"]["lr"]["value"]}, None, True)]


@pytest.mark.parametrize(("rule", "value"), [("worst", 9.0), ("best", 2.0), ("latest", 4.0)])
def test_failed_run_has_the_imputed_value(harness: ServerHarness, rule: str, value: float) -> None:
    sweep = bayes(harness, impute=rule)
    log_run(harness, sweep, "good", 1.0, 9.0, 1.5)
    log_run(harness, sweep, "failed", 3.0, 2.0, 4.0, exitcode=1)
    assert values(harness, sweep) == [1.0, value]


def test_worst_of_a_maximized_metric_is_the_lowest(harness: ServerHarness) -> None:
    sweep = bayes(harness, goal="maximize")
    log_run(harness, sweep, "good", 1.0, 9.0)
    log_run(harness, sweep, "failed", 3.0, exitcode=1)
    assert values(harness, sweep) == [9.0, 1.0]


def test_run_that_ended_without_any_value_is_not_pending(harness: ServerHarness) -> None:
    sweep = bayes(harness, impute="latest")
    log_run(harness, sweep, "failed", exitcode=1)
    log_run(harness, sweep, "silent")
    assert observed(harness, sweep) == [Observation({"lr": 0.5}, None, False)] * 2


def test_finished_run_without_a_value_is_imputed(harness: ServerHarness) -> None:
    sweep = bayes(harness)
    log_run(harness, sweep, "good", 1.0, 9.0)
    log_run(harness, sweep, "silent", float("nan"))
    assert values(harness, sweep) == [1.0, 9.0]


@pytest.mark.parametrize(("rule", "value"), [(False, None), ("worst", 9.0), ("best", 2.0), ("latest", 4.0)])
def test_running_run_is_pending_unless_it_is_imputed(
    harness: ServerHarness, rule: str | bool, value: float | None
) -> None:
    sweep = bayes(harness, impute_while_running=rule)
    log_run(harness, sweep, "good", 1.0, 9.0)
    log_run(harness, sweep, "under way", 3.0, 2.0, 4.0, exitcode=None)
    assert observed(harness, sweep)[1] == Observation({"lr": 0.5}, value, value is None)


def test_running_run_without_values_stays_pending(harness: ServerHarness) -> None:
    sweep = bayes(harness, impute_while_running="latest")
    log_run(harness, sweep, "under way", exitcode=None)
    assert observed(harness, sweep)[0].pending


def test_impute_options_are_read_from_the_metric() -> None:
    def metric(extra: str) -> tuple[SweepMetric | None, tuple[str, ...]]:
        rules = read_rules(
            f"{{method: random, metric: {{name: loss{extra}}}, parameters: {{a: {{min: 0, max: 9}}}}}}"
        )
        return rules.metric, rules.problems

    assert metric("") == (SweepMetric("loss"), ())
    assert metric(", impute: latest, impute_while_running: best") == (
        SweepMetric("loss", impute=Impute.LATEST, impute_while_running=Impute.BEST),
        (),
    )
    assert metric(", impute_while_running: false") == (SweepMetric("loss"), ())
    parsed, problems = metric(", impute: median")
    assert parsed == SweepMetric("loss")
    assert "metric.impute: 'median'" in problems[0]
    parsed, problems = metric(f", target: {10**400}")
    assert parsed == SweepMetric("loss")
    assert "is not a number" in problems[0]
