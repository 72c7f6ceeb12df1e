"""The unmodified wandb SDK and command line run whole sweeps against a real server process."""

import json
import subprocess
import time
from collections import Counter
from typing import Any

import pytest
import python_forkserver
import yaml
from machine import Machine
from sdk_scripts import graphql, run_script, script_results, start_script, upsert_sweep

from kto_sweep.server.refused import LAUNCH

GRID: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"values": [0.1, 0.2]}, "o": {"parameters": {"n": {"values": [1, 2]}}}},
}
AGENT = """
def trial():
    with wandb.init() as run:
        for step in range(3):
            run.log({"loss": run.config.lr * run.config.o["n"] / (step + 1)})
            time.sleep(0.2)
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
"""


def test_two_function_agents_run_a_grid_exactly_once_and_the_api_reads_it(machine: Machine) -> None:
    create = 'report(wandb.sweep(json.loads(sys.argv[1]), entity="acme", project="tests"))'
    sweep = run_script(machine, create, json.dumps(GRID))
    agents = [start_script(machine, AGENT, sweep) for _ in range(2)]
    for agent in agents:
        script_results(agent)
    code = """
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
report({
    "state": sweep.state, "runs": [[run.state, run.config, run.summary["loss"]] for run in sweep.runs],
    "best": sweep.best_run().config, "expected": sweep.expected_run_count, "order": sweep.order,
    "rows": [len(list(run.scan_history())) for run in sweep.runs], "method": sweep.config["method"],
    "linked": sweep.runs[0].sweep.id, "agents": sum(len(list(agent.runs())) for agent in sweep.agents()),
    "listed": [other.id for other in wandb.Api().project("tests", "acme").sweeps()],
})
"""
    result = run_script(machine, code, sweep)
    assert result["state"] == "FINISHED"
    cells = Counter((config["lr"], config["o"]["n"]) for _, config, _ in result["runs"])
    assert cells == Counter([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)])
    assert {state for state, _, _ in result["runs"]} == {"finished"}
    assert result["best"] == {"lr": 0.1, "o": {"n": 1}}
    assert result["expected"] == 4
    assert result["order"] == "+summary_metrics.loss"
    assert result["rows"] == [3, 3, 3, 3]
    assert (result["linked"], result["method"]) == (sweep, "grid")
    assert result["agents"] == 4
    assert sweep in result["listed"]


def test_best_run_by_a_metric_that_define_metric_made_an_object(machine: Machine) -> None:
    sweep = upsert_sweep(
        machine,
        {
            "method": "grid",
            "metric": {"name": "acc", "goal": "maximize"},
            "parameters": {"a": {"values": [1, 3, 2]}},
        },
    )
    code = """
def trial():
    with wandb.init() as run:
        run.define_metric("acc", summary="max")
        for value in (0, run.config.a, 0):
            run.log({"acc": value})
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
report([sweep.best_run().config, dict(sweep.best_run().summary["acc"])])
"""
    assert run_script(machine, code, sweep) == [{"a": 3}, {"max": 3}]


def test_a_config_without_a_trial_is_refused_and_other_problems_are_warnings(machine: Machine) -> None:
    code = """
import contextlib, io
shown = io.StringIO()
with contextlib.redirect_stderr(shown):
    try:
        wandb.sweep({"method": "grid", "parameters": {"lr": {"min": 0.1, "max": 0.5}}}, project="refused")
    except wandb.Error as error:
        report(str(error))
    values = {"lr": {"values": [1]}}
    sweep = wandb.sweep({"method": "grid", "parameters": values, "run_cap": 0}, project="refused")
report(len(wandb.Api().project("refused", "acme").sweeps()))
report(shown.getvalue())
"""
    refused, count, shown = script_results(start_script(machine, code, WANDB_SILENT="false"))
    assert refused.startswith("Invalid sweep config: Parameter lr is a disallowed type with grid search.")
    assert count == 1
    assert "run_cap: 0 is not a whole number" in shown


def test_a_launch_sweep_is_refused_without_a_launch_agent(machine: Machine) -> None:
    path = machine.folder / "launch.yaml"
    path.write_text(yaml.safe_dump({**GRID, "image_uri": "a/b:1"}))
    command = ("-m", "wandb", "launch-sweep", path.name, "-q", "default", "-p", "tests")
    environ = machine.environment | {"WANDB_SILENT": "false"}
    done = python_forkserver.run(command, machine.folder, environ)
    assert LAUNCH.sentence in done.stdout + done.stderr
    assert "Scheduler added" not in done.stdout + done.stderr


STATE = """query($name: String!) { project(entityName: "acme", name: "tests") {
    sweep(sweepName: $name) { state runs { edges { node { name state config historyLineCount } } } } } }"""


def runs_of(machine: Machine, sweep: str) -> list[dict[str, Any]]:
    edges = graphql(machine, STATE, name=sweep)["project"]["sweep"]["runs"]["edges"]
    return [edge["node"] for edge in edges]


PROGRAM = """
import argparse, json, signal, sys, time
import wandb
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--o", type=str)
parser.add_argument("--seconds", type=float, default=0.3)
options = parser.parse_args()
with wandb.init() as run:
    assert run.config.lr == options.lr
    until = time.time() + options.seconds
    while True:
        run.log({"loss": options.lr})
        time.sleep(0.1)
        if time.time() > until:
            break
"""
IMPATIENT_CLI = """
import sys
from wandb import wandb_agent
wandb_agent.Agent.POLL_INTERVAL = 0.3
from wandb.cli.cli import cli
cli()
"""


def command_line(machine: Machine, *args: str) -> "subprocess.Popen[str]":
    """The wandb command, with a shorter polling interval of its agent."""
    return machine.start_python("-c", IMPATIENT_CLI, *args, WANDB_SILENT="false")


def typed(machine: Machine, *args: str) -> str:
    process = command_line(machine, *args)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    return output


def sweep_of_program(machine: Machine, config: dict[str, Any]) -> str:
    """Creates a sweep whose agents start PROGRAM; its name."""
    (machine.folder / "program.py").write_text(PROGRAM)
    return upsert_sweep(machine, {"program": "program.py", **config})


def test_command_line_registers_a_file_with_a_prior_run_and_its_agent_runs_the_other_cells(
    machine: Machine,
) -> None:
    prior = """
with wandb.init(id="prior", config={"lr": 0.1}) as run:
    run.log({"loss": 0.1})
"""
    run_script(machine, prior)
    (machine.folder / "program.py").write_text(PROGRAM)
    parameters = {"lr": {"values": [0.1, 0.2, 0.3]}}
    config = {**GRID, "program": "program.py", "parameters": parameters, "name": "from a file"}
    (machine.folder / "grid.yaml").write_text(yaml.safe_dump(config))
    output = typed(machine, "sweep", "-R", "prior", "grid.yaml")
    sweep = output.split("sweep with ID: ")[1].split()[0]
    assert [run["name"] for run in runs_of(machine, sweep)] == ["prior"]
    typed(machine, "agent", f"acme/tests/{sweep}")
    sweep_runs = runs_of(machine, sweep)
    assert [json.loads(run["config"])["lr"]["value"] for run in sweep_runs] == [0.1, 0.2, 0.3]
    assert [run["state"] for run in sweep_runs] == ["finished"] * 3
    assert graphql(machine, STATE, name=sweep)["project"]["sweep"]["state"] == "FINISHED"


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


def test_pause_resume_and_cancel_from_the_command_line(machine: Machine) -> None:
    config = {"method": "random", "parameters": {"lr": {"min": 0.0, "max": 1.0}, "seconds": {"value": 0.1}}}
    sweep = sweep_of_program(machine, config)
    path = f"acme/tests/{sweep}"
    agent = command_line(machine, "agent", path)
    until(lambda: any(run["state"] == "finished" for run in runs_of(machine, sweep)))
    typed(machine, "sweep", "--pause", path)
    until(lambda: all(run["state"] == "finished" for run in runs_of(machine, sweep)))
    paused_at = len(runs_of(machine, sweep))
    time.sleep(1)
    assert len(runs_of(machine, sweep)) == paused_at
    typed(machine, "sweep", "--resume", path)
    until(lambda: len(runs_of(machine, sweep)) > paused_at)
    typed(machine, "sweep", "--cancel", path)
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode == 0, output
    assert {run["state"] for run in runs_of(machine, sweep)} <= {"finished", "killed"}


@pytest.mark.slow  # test_heartbeats.py has the same by requests
def test_stopped_run_of_a_program_ends_clean_and_the_agent_goes_on(machine: Machine) -> None:
    parameters = {"lr": {"values": [0.1]}, "seconds": {"value": 60}}
    sweep = sweep_of_program(machine, {**GRID, "parameters": parameters})
    agent = command_line(machine, "agent", f"acme/tests/{sweep}")
    until(lambda: any(run["state"] == "running" for run in runs_of(machine, sweep)))
    code = "report(wandb.Api().run('acme/tests/' + sys.argv[1]).stop())"
    name = runs_of(machine, sweep)[0]["name"]
    run_script(machine, code, name)
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode == 0, output
    (run,) = runs_of(machine, sweep)
    assert run["state"] == "killed"
    assert run["historyLineCount"] > 0


def test_deleted_sweep_sends_its_agent_home(machine: Machine) -> None:
    code = """
import threading
def trial():
    with wandb.init() as run:
        run.log({"loss": 1})
wandb.agent("nosuch", function=trial, entity="acme", project="tests")
"""
    agent = start_script(machine, code)
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode != 0
    assert "there is no sweep nosuch" in output


@pytest.mark.slow  # test_search_methods.py has the same by requests
def test_hyperband_stops_the_bad_run_and_leaves_the_good_ones(machine: Machine) -> None:
    config = {
        "method": "grid",
        "metric": {"name": "loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 2},
        "parameters": {"level": {"values": [1, 2, 9]}},
    }
    code = """
def trial():
    with wandb.init() as run:
        for step in range(100 if run.config.level == 9 else 10):
            run.log({"loss": run.config.level})
            time.sleep(0.1)
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
"""
    sweep = upsert_sweep(machine, config)
    script_results(start_script(machine, code, sweep))
    one, two, nine = runs_of(machine, sweep)
    assert (
        (one["state"], one["historyLineCount"]) == (two["state"], two["historyLineCount"]) == ("finished", 10)
    )
    assert nine["state"] == "killed"
    assert 3 <= nine["historyLineCount"] < 100
