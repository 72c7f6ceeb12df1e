"""Two servers for tests: a process for the real wandb SDK, and one in the test process with a fake clock."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kto_sweep.home import Home
from kto_sweep.local_server.start import LocalServer
from kto_sweep.server import file_stream, graphql_api, maintenance
from kto_sweep.server.resolvers.registry import Context
from kto_sweep.server.server_state import ServerState

GRID = {
    "method": "grid",
    "program": "train.py",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"values": [0.1, 0.2]}, "b": {"values": [1, 2]}},
}
RANDOM = {
    "method": "random",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 0.0, "max": 1.0}},
}

QUICK = """
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


@dataclass(frozen=True)
class SdkSandbox:
    """A server process, and a folder for the files of wandb SDK scripts."""

    home: Home
    address: LocalServer
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "WANDB_BASE_URL": self.address.url,
            "WANDB_API_KEY": self.address.key,
            "WANDB_ENTITY": "acme",
            "WANDB_PROJECT": "tests",
            "WANDB_DIR": str(self.folder),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_CONSOLE": "wrap",
            # Two underscores: internal settings of wandb.
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
            "WANDB__STATS_SAMPLING_INTERVAL": "1",
        }

    def start(self, code: str, *args: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", QUICK + code, *args],
            cwd=self.folder,
            env=self.environment | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self, process: "subprocess.Popen[str]", code: int = 0) -> list[Any]:
        """The values that the script reported."""
        output, _ = process.communicate(timeout=90)
        assert process.returncode == code, output
        return [json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")]

    def run(self, code: str, *args: str, exit_code: int = 0, **env: str) -> Any:
        """The last value that the script reported."""
        results = self.finish(self.start(code, *args, **env), exit_code)
        return results[-1] if results else None

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        response = httpx.post(
            f"{self.address.url}/graphql",
            json={"query": query, "variables": variables, "operationName": ""},
            auth=("api", self.address.key),
        )
        assert response.status_code == 200, response.text
        answer = response.json()
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def sweep(self, config: dict[str, Any]) -> str:
        """Creates a sweep in acme/tests without starting an SDK process; its name."""
        query = """mutation($config: String!) { upsertSweep(input:
            {config: $config, entityName: "acme", projectName: "tests"}) { sweep { name } } }"""
        return str(self.graphql(query, config=json.dumps(config))["upsertSweep"]["sweep"]["name"])


class FakeClock:
    """A clock that the test advances (`time`) or sets (`set`)."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        self._set = 0.0

    def __call__(self) -> float:
        return self.time + self._set

    def steady(self) -> float:
        return self.time

    def set(self, seconds: float) -> None:
        self._set += seconds


@dataclass(frozen=True)
class ServerHarness:
    """The server without HTTP, in the test process, with a fake clock."""

    server: ServerState
    clock: FakeClock

    def query(self, query: str, **variables: Any) -> Any:
        """The data of a query that must succeed."""
        status, body = self.execute(query, **variables)
        assert status == 200, body
        assert "errors" not in body, body
        return body["data"]

    def execute(self, query: str, **variables: Any) -> tuple[int, dict[str, Any]]:
        payload = {"query": query, "variables": variables, "operationName": ""}
        response = graphql_api.execute(Context(self.server, "http://test"), payload)
        return response.status, response.body

    def mutate(self, name: str, kind: str, result: str, /, **values: Any) -> Any:
        """The payload of one mutation that must succeed."""
        query = f"mutation M($input: {kind}!) {{ {name}(input: $input) {{ {result} }} }}"
        return self.query(query, input=values)[name]

    def sweep(self, config: dict[str, Any]) -> str:
        made = self.mutate("upsertSweep", "UpsertSweepInput", "sweep { name }", config=json.dumps(config))
        return str(made["sweep"]["name"])

    def agent(self, sweep: str) -> str:
        made = self.mutate("createAgent", "CreateAgentInput", "agent { id }", host="box", sweep=sweep)
        return str(made["agent"]["id"])

    def beat(self, agent: str, *running: str) -> list[dict[str, Any]]:
        state = json.dumps(dict.fromkeys(running, True))
        payload = self.mutate("agentHeartbeat", "AgentHeartbeatInput", "commands", id=agent, runState=state)
        commands: list[dict[str, Any]] = json.loads(payload["commands"])
        return commands

    def start_run(self, name: str, **values: Any) -> dict[str, Any]:
        """The first upsert of a run's process."""
        return dict(
            self.mutate(
                "upsertBucket",
                "UpsertBucketInput",
                "inserted bucket { id name state historyLineCount sweepName }",
                name=name,
                host="box",
                **values,
            )
        )

    def stream(self, name: str, **message: Any) -> dict[str, Any]:
        """One file_stream message of a run in local/uncategorized."""
        parsed = file_stream.parse(json.dumps(message).encode())
        return self.server.database.write(
            lambda c: file_stream.receive(c, self.server, "local", "uncategorized", name, parsed)
        )

    def log(self, name: str, offset: int, *rows: dict[str, Any]) -> dict[str, Any]:
        """History rows of a run from line `offset` on."""
        content = [json.dumps({"_step": number, **row}) for number, row in enumerate(rows, offset)]
        return self.stream(name, files={"wandb-history.jsonl": {"offset": offset, "content": content}})

    def work(self, agent: str, command: dict[str, Any], exitcode: int = 0) -> None:
        """Runs a trial from start to end, with the messages of its process and its agent."""
        name = command["run_id"]
        self.start_run(name)
        assert self.beat(agent, name) == []
        self.stream(name, complete=True, exitcode=exitcode)

    def run_maintenance(self) -> None:
        """Runs the maintenance once."""
        self.server.database.write(lambda c: maintenance.run_once(c, self.server))

    def run(self, name: str, fields: str = "state") -> dict[str, Any]:
        query = f"query($name: String!) {{ project {{ run(name: $name) {{ {fields} }} }} }}"
        return dict(self.query(query, name=name)["project"]["run"])

    def sweep_field(self, name: str, field: str = "state") -> Any:
        query = f"query($name: String!) {{ project {{ sweep(sweepName: $name) {{ {field} }} }} }}"
        return self.query(query, name=name)["project"]["sweep"][field]
