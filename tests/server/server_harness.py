"""A server in the test process, with a fake clock."""

import json
from dataclasses import dataclass
from typing import Any

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

    def execute(self, query: str, *, shared: bool = False, **variables: Any) -> tuple[int, dict[str, Any]]:
        payload = {"query": query, "variables": variables, "operationName": ""}
        response = graphql_api.execute(Context(self.server, "http://test", shared), payload)
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

    def stream(self, name: str, *, writer: str | None = None, **message: Any) -> dict[str, Any]:
        """One file_stream message of a run in local/uncategorized; `writer`: one of several processes."""
        parsed = file_stream.parse(json.dumps(message).encode())
        return self.server.database.write(
            lambda c: file_stream.receive(c, self.server, "local", "uncategorized", name, parsed, writer)
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
