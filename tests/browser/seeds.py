"""Seeds a real server with sweeps through its API, like the SDK."""

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml

from kto_sweep.local_server.start import LocalServer

HOSTILE = "<img src=x onerror=alert(1)>&<b>bold</b> %{y}"
FEW = {"learning_rate": [1.0e-6, 1.0e-5, 1.0e-4], "batch_size": [4, 8], "beta": [0.05, 0.1, 0.2, 0.4]}
STEPS = 300
FAILED = 5
"""Index of the failed run."""
HOSTILE_RUN = 3


@dataclass(frozen=True)
class SeededSweep:
    """A sweep and its runs, in creation order."""

    name: str
    runs: list[str]
    agent: str
    path: str


class SeededServer:
    """A server and its seeded sweeps."""

    def __init__(self, address: LocalServer) -> None:
        self.address = address
        self.url = address.url
        self._client = httpx.Client(base_url=address.url, auth=("api", address.key), timeout=60)

    def environ(self, folder: Path) -> dict[str, str]:
        """The environment of a command at home in `folder` that uses this server as W&B."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "KTO_SWEEP_HOME": str(folder / "home"),
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": self.address.key,
            "WANDB_ERROR_REPORTING": "false",
            "OMP_NUM_THREADS": "1",
        }

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = self._client.post("/graphql", json={"query": query, "variables": variables}).json()
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def register(self, project: str, **config: Any) -> str:
        """Creates a sweep; its name."""
        query = """mutation($config: String!, $project: String!) { upsertSweep(input:
            {config: $config, entityName: "local", projectName: $project}) { sweep { name } } }"""
        full = {"method": "grid", "metric": {"name": "eval/common_loss", "goal": "minimize"}, **config}
        made = self.graphql(query, config=yaml.safe_dump(full), project=project)
        return str(made["upsertSweep"]["sweep"]["name"])

    def agent(self, project: str, sweep: str, host: str = "gpu-box-1 gpu 0") -> str:
        query = """mutation($sweep: String!, $project: String!, $host: String!) { createAgent(input: {
            host: $host, sweep: $sweep, entityName: "local", projectName: $project}) { agent { id } } }"""
        return str(self.graphql(query, sweep=sweep, project=project, host=host)["createAgent"]["agent"]["id"])

    def next_trial(self, agent: str) -> tuple[str, dict[str, Any]]:
        """Name and parameters of the agent's next run."""
        query = 'mutation($id: ID!) { agentHeartbeat(input: {id: $id, runState: "{}"}) { commands } }'
        [command] = json.loads(self.graphql(query, id=agent)["agentHeartbeat"]["commands"])
        return command["run_id"], {key: entry["value"] for key, entry in command["args"].items()}

    def upsert(self, project: str, name: str, **values: Any) -> None:
        query = "mutation($input: UpsertBucketInput!) { upsertBucket(input: $input) { inserted } }"
        self.graphql(query, input={"name": name, "entityName": "local", "modelName": project, **values})

    def stream(self, project: str, run: str, **message: Any) -> None:
        path = f"/files/local/{project}/{run}/file_stream"
        assert self._client.post(path, json=message).status_code == 200

    def log(self, project: str, run: str, offset: int, rows: list[dict[str, Any]], **more: Any) -> None:
        """Logs history rows from line `offset`, and their summary."""
        texts = [json.dumps(row) for row in rows]
        summary: dict[str, Any] = {}
        for row in rows:
            summary |= row
        files = {
            "wandb-history.jsonl": {"offset": offset, "content": texts},
            "wandb-summary.json": {"offset": 0, "content": [json.dumps(summary | more.pop("summary", {}))]},
            **more.pop("files", {}),
        }
        self.stream(project, run, files=files, **more)

    @cached_property
    def grid(self) -> SeededSweep:
        """Two dozen runs of a grid of 24: one with a hostile name, one failed, the last still running."""
        parameters = {name: {"values": values} for name, values in FEW.items()}
        sweep = self.register("kto", name="lr-batch-beta", parameters=parameters)
        agent, names = self.agent("kto", sweep), []
        for number in range(22):
            name, chosen = self.next_trial(agent)
            names.append(name)
            shown = {"displayName": HOSTILE} if number == HOSTILE_RUN else {}
            config = json.dumps({key: {"value": value} for key, value in {**chosen, "lora_r": 16}.items()})
            self.upsert("kto", name, host="gpu-box-1", jobProgram="x", sweep=sweep, config=config, **shown)
            self._train(name, chosen, failed=number == FAILED, running=number == 21)
        return SeededSweep(sweep, names, agent, f"/local/kto/sweeps/{sweep}")

    def _train(self, name: str, chosen: dict[str, Any], *, failed: bool, running: bool) -> None:
        speed = 1 + math.log10(chosen["learning_rate"] / 1e-6) + chosen["beta"]
        rows = [row(step, speed, chosen["batch_size"]) for step in range(STEPS)]
        message: dict[str, Any] = {} if running else {"complete": True, "exitcode": int(failed)}
        if failed:
            message["summary"] = {"failure/cause": "out of memory", "eval/common_loss": None}
            self.graphql(
                """mutation($i: NotifyScriptableRunAlertInput!) {
                notifyScriptableRunAlert(input: $i) { success } }""",
                i={
                    "entityName": "local",
                    "projectName": "kto",
                    "runName": name,
                    "title": "KL runs away",
                    "text": "kl_raw 12 > 10",
                    "severity": "WARN",
                },
            )
        stamp = "2026-11-24T08:00:00.000000"
        output = [f"{stamp} training\n", f"ERROR {stamp} \x1b[31mno memory\n"]
        events = [json.dumps({"_runtime": 15 * i, "system.gpu.0.gpu": 80 + i % 7}) for i in range(30)]
        message["files"] = {
            "output.log": {"offset": 0, "content": output},
            "wandb-events.jsonl": {"offset": 0, "content": events},
        }
        self.log("kto", name, 0, rows, **message)

    @cached_property
    def thousand(self) -> SeededSweep:
        """A thousand finished runs of a random search."""
        parameters = {"learning_rate": {"min": 1.0e-6, "max": 1.0e-3}, "seed": {"values": [1, 2, 3]}}
        sweep = self.register("many", name="thousand", method="random", parameters=parameters)
        names = [f"run{number:04}" for number in range(1000)]
        for start in range(0, 1000, 50):
            part = names[start : start + 50]
            heads = ", ".join(f"$i{k}: UpsertBucketInput!" for k in range(len(part)))
            fields = " ".join(f"m{k}: upsertBucket(input: $i{k}) {{ inserted }}" for k in range(len(part)))
            values = {f"i{k}": self._finished(sweep, name, start + k) for k, name in enumerate(part)}
            self.graphql(f"mutation({heads}) {{ {fields} }}", **values)
        return SeededSweep(sweep, names, "", f"/local/many/sweeps/{sweep}")

    @cached_property
    def noisy(self) -> SeededSweep:
        """Two learning rates with three seeds each, and trials that do not rank.

        lr 1e-5 has the best mean, lr 1e-6 the best single run. `blown-up` diverged with the lowest loss,
        `shaky` finished although its training broke, `halfway` is at step 58 of 200, `cut` was stopped.
        """
        parameters = {"learning_rate": {"values": [1e-6, 1e-5, 1e-4]}, "seed": {"values": [1, 2, 3]}}
        sweep = self.register("noise", name="noisy", parameters=parameters)
        broken = {"trial/health": "unstable", "trial/health_message": "9 of the last 11 gradients were inf"}
        diverged = {"failure/cause": "diverged", "failure/message": "the loss is nan since step 31"}
        trials: list[tuple[str, str, float, int, float, dict[str, Any]]] = [
            ("low-1", "finished", 1e-6, 1, 0.39, {}),
            ("low-2", "finished", 1e-6, 2, 0.45, {}),
            ("low-3", "finished", 1e-6, 3, 0.45, {}),
            ("good-1", "finished", 1e-5, 1, 0.401, {}),
            ("good-2", "finished", 1e-5, 2, 0.400, {}),
            ("good-3", "finished", 1e-5, 3, 0.402, {}),
            ("blown-up", "failed", 1e-4, 1, 0.1, diverged),
            ("shaky", "finished", 1e-4, 2, 0.2, broken),
            ("halfway", "running", 1e-4, 3, 0.3, {}),
            ("cut", "killed", 1e-4, 3, 0.35, {"_step": 20}),
        ]
        for name, state, rate, seed, loss, more in trials:
            config = {"learning_rate": {"value": rate}, "seed": {"value": seed}}
            summary = {"eval/common_loss": loss, "_step": 58, "_runtime": 90, "trial/steps": 200, **more}
            values = {"host": "box", "sweep": sweep, "displayName": name, "config": json.dumps(config)}
            self.upsert("noise", f"id-{name}", **values, state=state, summaryMetrics=json.dumps(summary))
        return SeededSweep(sweep, [name for name, *_ in trials], "", f"/local/noise/sweeps/{sweep}")

    @cached_property
    def two_datasets(self) -> SeededSweep:
        """Four finished runs: two judged on the rows of a.jsonl, two on those of b.jsonl."""
        parameters = {"dataset": {"values": ["a.jsonl", "b.jsonl"]}, "beta": {"values": [0.1, 0.2]}}
        sweep = self.register("datasets", name="two-datasets", parameters=parameters)
        losses = {("a", 0.1): 0.4, ("a", 0.2): 0.3, ("b", 0.1): 0.1, ("b", 0.2): 0.2}
        for (data, beta), loss in losses.items():
            config = {"model_size": "tiny", "dataset": f"{data}.jsonl", "beta": beta}
            values = {
                "host": "box",
                "sweep": sweep,
                "state": "finished",
                "config": json.dumps({key: {"value": value} for key, value in config.items()}),
                "summaryMetrics": json.dumps({"eval/common_loss": loss, "trial/eval_data": data * 16}),
            }
            self.upsert("datasets", f"{data}{beta}", displayName=f"{data}{beta}", **values)
        names = [f"{data}{beta}" for data, beta in losses]
        return SeededSweep(sweep, names, "", f"/local/datasets/sweeps/{sweep}")

    def _finished(self, sweep: str, name: str, number: int) -> dict[str, Any]:
        config = {"learning_rate": {"value": 1e-6 * (number + 1)}, "seed": {"value": number % 3 + 1}}
        return {
            "name": name,
            "entityName": "local",
            "modelName": "many",
            "host": "box",
            "sweep": sweep,
            "state": "finished",
            "displayName": f"trial-{number}",
            "config": json.dumps(config),
            "summaryMetrics": json.dumps({"eval/common_loss": 0.2 + (number * 7 % 1000) / 1000}),
        }


def row(step: int, speed: float, batch: int) -> dict[str, Any]:
    """The history row of a step."""
    gain = speed * (1 - math.exp(-3 * step / STEPS))
    values = {
        "_step": step,
        "_runtime": step * 0.5,
        "loss": 0.5 - 0.05 * gain,
        "rewards/margins": gain,
        "kl": 0.1 * gain,
        "learning_rate": 1e-9,  # the scheduled rate, which differs from the searched parameter
        "gpu/memory_peak_gb": 6.0 + batch,
    }
    if step % 50 == 49:
        values["eval/common_loss"] = 0.5 - 0.06 * gain
    return values
