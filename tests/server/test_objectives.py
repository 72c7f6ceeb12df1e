"""Several objectives on the server: observations of runs, and invalid objectives."""

from typing import Any

import pytest
import yaml
from server_harness import ServerHarness

from kto_sweep.search.objectives import Objective
from kto_sweep.server.observations import observations
from kto_sweep.server.store import projects, sweeps
from kto_sweep.server.sweep_rules import read_rules

SEARCH: dict[str, Any] = {
    "method": "bayes",
    "parameters": {"lr": {"min": 0.0, "max": 1.0}},
    "kto_sweep": {
        "objectives": [{"name": "loss"}, {"name": "trial/seconds"}, {"name": "auc", "goal": "maximize"}]
    },
}


def end(harness: ServerHarness, agent: str, summary: str, exitcode: int = 0) -> None:
    name = harness.beat(agent)[0]["run_id"]
    harness.start_run(name)
    harness.stream(
        name,
        files={"wandb-summary.json": {"offset": 0, "content": [summary]}},
        complete=True,
        exitcode=exitcode,
    )


def test_other_objectives_come_from_the_summary_and_failed_runs_have_the_worst(
    harness: ServerHarness,
) -> None:
    name = harness.sweep(SEARCH)
    agent = harness.agent(name)
    end(harness, agent, '{"loss": 0.5, "trial/seconds": 60, "auc": 0.7}')
    end(harness, agent, '{"loss": 0.4, "trial/seconds": 90, "auc": 0.6}')
    end(harness, agent, '{"loss": 0.1, "trial/seconds": 1, "auc": 0.99}', exitcode=1)
    end(harness, agent, '{"loss": 0.3, "auc": NaN}')
    running = harness.beat(agent)[0]["run_id"]
    harness.start_run(running)
    reader = harness.server.database.reader()
    project = projects.find(reader, None, None)
    assert project is not None
    sweep = sweeps.find(reader, project.id, name)
    assert sweep is not None
    rules = read_rules(sweep.config)
    assert rules.problems == ()
    assert rules.metric is not None
    seen = observations(reader, sweep.id, rules.metric, rules.options.objectives[1:])
    assert [(each.value, each.costs, each.pending) for each in seen] == [
        (0.5, (60.0, -0.7), False),
        (0.4, (90.0, -0.6), False),
        (0.5, (90.0, -0.6), False),  # the worst of the metric as well
        (0.3, (90.0, -0.6), False),
        (None, (), True),
    ]


def test_a_search_with_objectives_gives_every_trial_and_never_fails(
    harness: ServerHarness, caplog: pytest.LogCaptureFixture
) -> None:
    agent = harness.agent(harness.sweep({**SEARCH, "run_cap": 9}))
    for number in range(9):
        end(
            harness,
            agent,
            f'{{"loss": {number / 9}, "trial/seconds": {9 - number}, "auc": 0.5}}',
            number == 3,
        )
    assert harness.beat(agent) == [{"type": "exit"}]
    assert "failed" not in caplog.text


def test_the_first_objective_is_the_metric_where_none_is_named() -> None:
    rules = read_rules(yaml.safe_dump(SEARCH))
    assert rules.metric is not None
    assert rules.metric.name == "loss"
    assert rules.options.objectives == (
        Objective("loss"),
        Objective("trial/seconds"),
        Objective("auc", maximize=True),
    )


@pytest.mark.parametrize(
    "objectives",
    [
        "loss",
        [{"name": "loss"}],
        [{"name": "loss"}, "auc"],
        [{"name": "loss"}, {"name": 3}],
        [{"name": "loss"}, {"name": "auc", "goal": ["up"]}],
        [{"name": "loss"}, {"name": "loss"}],
        [{"name": "auc"}, {"name": "loss"}],
        [{"name": "loss", "goal": "maximize"}, {"name": "auc"}],
    ],
)
def test_invalid_objectives_are_reported_and_ignored(objectives: Any) -> None:
    config = {**SEARCH, "metric": {"name": "loss"}, "kto_sweep": {"objectives": objectives}}
    rules = read_rules(yaml.safe_dump(config))
    (problem,) = rules.problems
    assert problem.startswith("kto_sweep.objectives: ")
    assert rules.options.objectives == ()
    assert rules.metric is not None
