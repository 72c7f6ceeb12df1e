"""What a Bayesian search is told of a sweep's runs."""

from typing import Any

import pytest
from server_bench import Bench

from kto_sweep.search.bayes import Observation
from kto_sweep.server.observations import observations
from kto_sweep.server.store import sweeps
from kto_sweep.server.sweep_rules import Impute, Metric, read_rules

BAYES: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 0.0, "max": 1.0}},
}


def bayes(bench: Bench, **metric: Any) -> str:
    return bench.sweep({**BAYES, "metric": {**BAYES["metric"], **metric}})


def told(bench: Bench, sweep: str) -> list[Observation]:
    connection = bench.backend.database.reader()
    row = connection.execute("SELECT id FROM sweep WHERE name = ?", (sweep,)).fetchone()[0]
    found = sweeps.get(connection, row)
    assert found is not None
    metric = read_rules(found.config).metric
    assert metric is not None
    return observations(connection, row, metric)


def log_run(bench: Bench, sweep: str, name: str, *losses: float, exitcode: int | None = 0) -> None:
    """A run attached to the sweep by hand; without an exit code it goes on."""
    bench.start_run(name, sweep=sweep, config='{"lr": {"value": 0.5}, "_wandb": {"value": {}}}')
    bench.log(name, 0, *({"loss": loss} for loss in losses))
    if exitcode is not None:
        bench.stream(name, complete=True, exitcode=exitcode)


def values(bench: Bench, sweep: str) -> list[float | None]:
    return [run.value for run in told(bench, sweep)]


def test_finished_run_has_its_best_value(bench: Bench) -> None:
    low, high = bayes(bench), bayes(bench, goal="maximize")
    for sweep in (low, high):
        log_run(bench, sweep, f"r{sweep}", 3.0, 1.0, float("nan"), 2.0)
    assert told(bench, low) == [Observation({"lr": 0.5}, 1.0, False)]
    assert told(bench, high) == [Observation({"lr": 0.5}, 3.0, False)]


def test_value_in_the_summary_counts_too(bench: Bench) -> None:
    sweep = bayes(bench)
    log_run(bench, sweep, "r", 3.0, exitcode=None)
    bench.stream("r", files={"wandb-summary.json": {"offset": 0, "content": ['{"loss": 0.5}']}})
    bench.stream("r", complete=True)
    assert values(bench, sweep) == [0.5]


def test_chosen_config_counts_and_not_what_the_script_made_of_it(bench: Bench) -> None:
    sweep = bayes(bench)
    command = bench.beat(bench.agent(sweep))[0]
    bench.start_run(command["run_id"], config='{"lr": {"value": 99}}')
    assert told(bench, sweep) == [Observation({"lr": command["args"]["lr"]["value"]}, None, True)]


@pytest.mark.parametrize(("rule", "value"), [("worst", 9.0), ("best", 2.0), ("latest", 4.0)])
def test_failed_run_has_the_value_that_the_rule_says(bench: Bench, rule: str, value: float) -> None:
    sweep = bayes(bench, impute=rule)
    log_run(bench, sweep, "good", 1.0, 9.0, 1.5)
    log_run(bench, sweep, "failed", 3.0, 2.0, 4.0, exitcode=1)
    assert values(bench, sweep) == [1.0, value]


def test_worst_of_a_maximized_metric_is_the_lowest(bench: Bench) -> None:
    sweep = bayes(bench, goal="maximize")
    log_run(bench, sweep, "good", 1.0, 9.0)
    log_run(bench, sweep, "failed", 3.0, exitcode=1)
    assert values(bench, sweep) == [9.0, 1.0]


def test_run_that_ended_without_any_value_is_not_pending(bench: Bench) -> None:
    sweep = bayes(bench, impute="latest")
    log_run(bench, sweep, "failed", exitcode=1)
    log_run(bench, sweep, "silent")
    assert told(bench, sweep) == [Observation({"lr": 0.5}, None, False)] * 2


def test_finished_run_without_a_value_is_imputed(bench: Bench) -> None:
    sweep = bayes(bench)
    log_run(bench, sweep, "good", 1.0, 9.0)
    log_run(bench, sweep, "silent", float("nan"))
    assert values(bench, sweep) == [1.0, 9.0]


@pytest.mark.parametrize(("rule", "value"), [(False, None), ("worst", 9.0), ("best", 2.0), ("latest", 4.0)])
def test_running_run_is_pending_unless_it_is_imputed(
    bench: Bench, rule: str | bool, value: float | None
) -> None:
    sweep = bayes(bench, impute_while_running=rule)
    log_run(bench, sweep, "good", 1.0, 9.0)
    log_run(bench, sweep, "under way", 3.0, 2.0, 4.0, exitcode=None)
    assert told(bench, sweep)[1] == Observation({"lr": 0.5}, value, value is None)


def test_running_run_that_has_logged_nothing_stays_pending(bench: Bench) -> None:
    sweep = bayes(bench, impute_while_running="latest")
    log_run(bench, sweep, "under way", exitcode=None)
    assert told(bench, sweep)[0].pending


def test_rules_of_imputation_are_read_from_the_metric() -> None:
    def metric(extra: str) -> tuple[Metric | None, tuple[str, ...]]:
        rules = read_rules(
            f"{{method: random, metric: {{name: loss{extra}}}, parameters: {{a: {{min: 0, max: 9}}}}}}"
        )
        return rules.metric, rules.problems

    assert metric("") == (Metric("loss"), ())
    assert metric(", impute: latest, impute_while_running: best") == (
        Metric("loss", impute=Impute.LATEST, impute_while_running=Impute.BEST),
        (),
    )
    assert metric(", impute_while_running: false") == (Metric("loss"), ())
    found, problems = metric(", impute: median")
    assert found == Metric("loss")
    assert "metric.impute: 'median'" in problems[0]
    found, problems = metric(f", target: {10**400}")
    assert found == Metric("loss")
    assert "is not a number" in problems[0]
