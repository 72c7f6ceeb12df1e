"""Scripts with the unmodified wandb SDK, run on a machine whose W&B server is its embedded server."""

import json
import subprocess
from typing import Any

import httpx
from machine import Machine

SETTINGS = {
    "WANDB_ENTITY": "acme",
    "WANDB_PROJECT": "tests",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_CONSOLE": "wrap",
    # Two underscores: internal settings of wandb.
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB__STATS_SAMPLING_INTERVAL": "1",
}
"""Environment variables of the scripts."""

FAST_SDK = """
import json, os, queue, sys, time, types
import wandb
from wandb.agents import pyagent

pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.3

class Queue(queue.Queue):
    def get(self, block=True, timeout=None):
        return super().get(block, timeout and 0.2)

# wandb's agent polls for work every 5 s, and checks whether to exit only 5 s later.
pyagent.queue = types.SimpleNamespace(Queue=Queue, Empty=queue.Empty)
pyagent.time = types.SimpleNamespace(time=time.time, sleep=lambda seconds: time.sleep(min(seconds, 0.3)))

def report(value):
    print("RESULT " + json.dumps(value), flush=True)
"""
"""Prefix of every SDK script: the unmodified SDK with shorter polling intervals."""


def start_script(machine: Machine, code: str, *args: str, **env: str) -> "subprocess.Popen[str]":
    """A running script. It sends results with `report(value)`."""
    return machine.start_python("-c", FAST_SDK + code, *args, **env)


def script_results(process: "subprocess.Popen[str]", code: int = 0) -> list[Any]:
    """The results of a script, which must exit with `code`."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == code, output
    return [json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")]


def run_script(machine: Machine, code: str, *args: str, exit_code: int = 0, **env: str) -> Any:
    """The last result of a script, which must exit with `exit_code`."""
    results = script_results(start_script(machine, code, *args, **env), exit_code)
    return results[-1] if results else None


def graphql(machine: Machine, query: str, **variables: Any) -> dict[str, Any]:
    """The data of a query that must succeed."""
    response = httpx.post(
        f"{machine.address.url}/graphql",
        json={"query": query, "variables": variables, "operationName": ""},
        auth=("api", machine.address.key),
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert "errors" not in answer, answer
    return dict(answer["data"])


def upsert_sweep(machine: Machine, config: dict[str, Any]) -> str:
    """The name of a new sweep in acme/tests, created without an SDK process, which is slow."""
    query = """mutation($config: String!) { upsertSweep(input:
        {config: $config, entityName: "acme", projectName: "tests"}) { sweep { name } } }"""
    return str(graphql(machine, query, config=json.dumps(config))["upsertSweep"]["sweep"]["name"])
