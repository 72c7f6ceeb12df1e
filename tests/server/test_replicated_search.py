"""Replicates of random and bayes on the server: several agents, failures, a killed server, wandb's tools."""

import os
import signal
import threading
from collections import Counter
from typing import Any

import pytest
import python_forkserver
import yaml
from machine import Machine
from sdk_scripts import run_script, script_results, start_script, upsert_sweep
from server_harness import ServerHarness

from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server
from kto_sweep.server.sweep_rules import read_rules

SEARCH: dict[str, Any] = {
    "method": "bayes",
    "run_cap": 18,
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 0.0, "max": 1.0}, "seed": {"value": 7}},
    "kto_sweep": {"replicates": 3},
}
READ = """
sweep = wandb.Api().sweep("acme/tests/" + sys.argv[1])
report([[run.config["lr"], run.config["seed"], run.state] for run in sweep.runs])
"""


def work(harness: ServerHarness, agent: str, exitcode: int = 0) -> dict[str, Any]:
    """Runs one trial; its configuration."""
    command = harness.beat(agent)[0]
    config = {name: entry["value"] for name, entry in command["args"].items()}
    harness.start_run(command["run_id"])
    harness.log(command["run_id"], 0, {"loss": (config["lr"] - 0.3) ** 2 + config["seed"] / 100})
    harness.stream(command["run_id"], complete=True, exitcode=exitcode)
    return config


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_each_configuration_is_trained_with_all_seeds_before_the_next(
    harness: ServerHarness, method: str
) -> None:
    sweep = harness.sweep({**SEARCH, "method": method})
    agents = [harness.agent(sweep) for _ in range(2)]
    # One in five fails for good: it counts as tried.
    done = [work(harness, agents[number % 2], exitcode=number % 5 == 4) for number in range(18)]
    assert [config["seed"] for config in done] == [7, 8, 9] * 6
    rates = [config["lr"] for config in done]
    assert all(len(set(rates[start : start + 3])) == 1 for start in range(0, 18, 3))
    assert len(set(rates)) == 6
    assert harness.beat(agents[0]) == [{"type": "exit"}]
    assert harness.sweep_field(sweep) == "FINISHED"


@pytest.mark.slow
def test_three_agents_and_a_server_that_is_killed_train_each_seed_once(machine: Machine) -> None:
    sweep = upsert_sweep(machine, SEARCH)
    agent = """
def trial():
    with wandb.init() as run:
        for step in range(3):
            run.log({"loss": (run.config.lr - 0.3) ** 2 + run.config.seed / 100})
            time.sleep(0.2)
wandb.agent(sys.argv[1], function=trial, entity="acme", project="tests")
"""
    agents = [start_script(machine, agent, sweep) for _ in range(3)]
    begun = threading.Event()
    while len(run_script(machine, READ, sweep)) < 4:
        begun.wait(0.2)
    server = server_pid(machine.home)
    assert server is not None
    os.kill(server, signal.SIGKILL)
    ensure_server(machine.home)
    for each in agents:
        script_results(each)
    runs = run_script(machine, READ, sweep)
    assert Counter((lr, seed) for lr, seed, _ in runs) == {
        (lr, seed): 1 for lr in {lr for lr, _, _ in runs} for seed in (7, 8, 9)
    }
    assert len(runs) == 18


def test_wandb_sweep_registers_the_options(machine: Machine) -> None:
    file = machine.folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SEARCH, "program": "train.py"}))
    command = ("-m", "wandb", "sweep", "--entity", "acme", "--project", "tests", str(file))
    said = python_forkserver.run(command, machine.folder, machine.environment | {"WANDB_SILENT": "false"})
    assert said.returncode == 0, said.stdout + said.stderr
    output = said.stdout + said.stderr
    name = output.split("acme/tests/sweeps/")[1].split()[0].strip()
    code = 'report(wandb.Api().sweep("acme/tests/" + sys.argv[1]).config["kto_sweep"])'
    assert run_script(machine, code, name) == {"replicates": 3}


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("many", "'many' is not a group of options"),
        ([1], "[1] is not a group of options"),
        ({"replicates": "3"}, "replicates: '3' is not a number from 2 to 100"),
        ({"replicates": {"a": [None]}}, "is not a number from 2 to 100"),
        ({"alerts": ["loss > 1"]}, "alerts: only `kto-sweep create`"),
        ({"nonsense": 1, 2: 3}, "nonsense: unknown option"),
    ],
)
def test_invalid_options_are_reported_and_ignored(block: Any, problem: str) -> None:
    rules = read_rules(yaml.safe_dump({**SEARCH, "kto_sweep": block}))
    assert any(problem in each for each in rules.problems), rules.problems
    assert rules.options.seeds == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method": "grid", "parameters": {"lr": {"values": [1, 2]}}}, "for a grid, only"),
        ({"parameters": {"seed": {"values": [1, 2]}, "lr": {"min": 0.0, "max": 1.0}}}, "a single number"),
    ],
)
def test_invalid_replicates_are_reported(change: dict[str, Any], problem: str) -> None:
    rules = read_rules(yaml.safe_dump({**SEARCH, **change}))
    assert any(problem in each for each in rules.problems), rules.problems
