"""The embedded server under load: many runs that log at wandb's default pace, sweeps of many finished runs.

    python benchmarks/load.py
    python benchmarks/load.py --runs 50 --seconds 20 --finished 1000        # a short one

Starts a server of its own in a temporary home, talks to it over loopback only, and ends it. The clients share
the machine's cores with the server, so its own latencies are lower than those printed. The goal: each of the
answers from the large sweeps within 200 ms.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from kto_sweep.home import Home
from kto_sweep.local_server.start import LocalServer, ensure_server, stop_server
from kto_sweep.search import grid
from kto_sweep.search.space import Space
from kto_sweep.server import file_stream, run_writes, sweep_writes
from kto_sweep.server.server_state import ServerClock, ServerState
from kto_sweep.server.states import RunState
from kto_sweep.server.store import runs, sweeps
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.migrations import migrate
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import read_rules

ENTITY, PROJECT = "acme", "load"
FILE_STREAM_SECONDS, HEARTBEAT_SECONDS = 15.0, 5.0
"""How often wandb 0.31 sends a run's lines, and how often its agent calls in."""
METRICS = ("loss", "kl", "eval/loss", "grad_norm", *(f"metric/{number}" for number in range(16)))
BATCH = 500
"""Runs per commit while the large sweeps are filled."""
ROWS = 20
"""History rows of each finished run."""

RANDOM = {
    "method": "random",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {
        "lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3},
        "batch": {"values": [4, 8, 16]},
    },
}


@dataclass
class Timings:
    """Seconds that requests took, by kind."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind].append(seconds)

    def table(self) -> str:
        """A Markdown table, in milliseconds."""
        head = "| request | count | p50 ms | p95 ms | max ms |\n|---|---:|---:|---:|---:|"
        return "\n".join([head, *(_line(kind, seconds) for kind, seconds in self.seconds.items())])


def _line(kind: str, seconds: list[float]) -> str:
    found = [1000 * value for value in (statistics.median(seconds), _percentile(seconds, 95), max(seconds))]
    return f"| {kind} | {len(seconds)} | " + " | ".join(f"{value:.1f}" for value in found) + " |"


def _percentile(seconds: list[float], percent: int) -> float:
    """The smallest value that `percent` of all do not exceed."""
    return sorted(seconds)[-(-len(seconds) * percent // 100) - 1]


# Simulated runs


@dataclass
class Client:
    """Sends requests as wandb does, and notes how long each took."""

    http: httpx.AsyncClient
    timings: Timings

    async def graphql(self, kind: str, query: str, **variables: Any) -> dict[str, Any]:
        body = {"query": query, "variables": variables, "operationName": ""}
        answer = await self._post(kind, "/graphql", body)
        assert "errors" not in answer, answer
        return dict(answer["data"])

    async def file_stream(self, kind: str, run: str, **message: Any) -> None:
        await self._post(kind, f"/files/{ENTITY}/{PROJECT}/{run}/file_stream", message)

    async def page(self, kind: str, path: str) -> None:
        begun = time.perf_counter()
        (await self.http.get(path)).raise_for_status()
        self.timings.add(kind, time.perf_counter() - begun)

    async def _post(self, kind: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        begun = time.perf_counter()
        response = await self.http.post(path, content=content)
        self.timings.add(kind, time.perf_counter() - begun)
        response.raise_for_status()
        return dict(response.json())

    async def sweep(self, config: dict[str, Any]) -> str:
        query = """mutation($config: String, $entity: String, $project: String) { upsertSweep(input:
            {config: $config, entityName: $entity, projectName: $project}) { sweep { name } } }"""
        told = await self.graphql(
            "create a sweep", query, config=yaml.safe_dump(config), entity=ENTITY, project=PROJECT
        )
        return str(told["upsertSweep"]["sweep"]["name"])

    async def agent(self, sweep: str) -> str:
        query = """mutation($sweep: String!, $entity: String, $project: String) { createAgent(input:
            {host: "box", sweep: $sweep, entityName: $entity, projectName: $project}) { agent { id } } }"""
        told = await self.graphql("register an agent", query, sweep=sweep, entity=ENTITY, project=PROJECT)
        return str(told["createAgent"]["agent"]["id"])

    async def beat(self, kind: str, agent: str, *running: str) -> list[dict[str, Any]]:
        query = """mutation($id: ID!, $state: JSONString) { agentHeartbeat(input:
            {id: $id, metrics: "{}", runState: $state}) { agent { id } commands } }"""
        state = json.dumps(dict.fromkeys(running, True))
        told = await self.graphql(kind, query, id=agent, state=state)
        commands: list[dict[str, Any]] = json.loads(told["agentHeartbeat"]["commands"])
        return commands

    async def start_run(self, sweep: str, command: dict[str, Any]) -> None:
        query = """mutation($name: String, $config: JSONString, $sweep: String, $entity: String,
            $project: String) { upsertBucket(input: {name: $name, config: $config, sweep: $sweep, host: "box",
            jobProgram: "train.py", entityName: $entity, modelName: $project}) { bucket { id name } } }"""
        await self.graphql(
            "start a run",
            query,
            name=command["run_id"],
            config=json.dumps(command["args"]),
            sweep=sweep,
            entity=ENTITY,
            project=PROJECT,
        )


async def live_a_run(client: Client, sweep: str, seconds: float, rng: random.Random) -> int:
    """One agent with one run that logs a row a second; how many rows it was told are stored."""
    await asyncio.sleep(rng.uniform(0, min(FILE_STREAM_SECONDS, seconds / 2)))
    agent = await client.agent(sweep)
    command = (await client.beat("heartbeat: next run", agent))[0]
    name = command["run_id"]
    await client.start_run(sweep, command)
    begun = time.monotonic()
    end = begun + seconds
    beating = asyncio.create_task(_beat_until(end, client, agent, name))
    sent = 0
    while (now := time.monotonic()) < end:
        await asyncio.sleep(min(FILE_STREAM_SECONDS, end - now))
        rows = int(time.monotonic() - begun) - sent
        await client.file_stream("file_stream: lines", name, files=_lines(sent, rows, rng))
        sent += rows
    await beating
    await client.file_stream("file_stream: end", name, complete=True, exitcode=0)
    return sent


async def _beat_until(end: float, client: Client, agent: str, run: str) -> None:
    while time.monotonic() + HEARTBEAT_SECONDS < end:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        assert await client.beat("heartbeat: working", agent, run) == []


def _lines(offset: int, count: int, rng: random.Random) -> dict[str, Any]:
    """History rows, one line of system metrics, console lines and the summary, as they go together."""
    rows = [
        {
            "_step": step,
            "_timestamp": 1.7e9 + step,
            "_runtime": step,
            **{key: rng.random() for key in METRICS},
        }
        for step in range(offset, offset + count)
    ]
    history = [json.dumps(row) for row in rows]
    system = json.dumps({f"system.gpu.{number}.memory": rng.random() for number in range(20)})
    return {
        "wandb-history.jsonl": {"offset": offset, "content": history},
        "wandb-events.jsonl": {"offset": int(offset // FILE_STREAM_SECONDS), "content": [system]},
        "output.log": {
            "offset": offset,
            "content": [f"2026-01-01T00:00:00 step {row['_step']}" for row in rows],
        },
        "wandb-summary.json": {"offset": 0, "content": history[-1:]},
    }


async def measure_runs(client: Client, count: int, seconds: float) -> None:
    """Print what `count` concurrent runs cost. Raises AssertionError when a row is missing afterwards."""
    sweep = await client.sweep(RANDOM)
    begun = time.monotonic()
    rngs = [random.Random(number) for number in range(count)]
    sent = await asyncio.gather(*(live_a_run(client, sweep, seconds, rng) for rng in rngs))
    took = time.monotonic() - begun
    requests = sum(len(times) for times in client.timings.seconds.values())
    query = """query($entity: String, $project: String, $sweep: String!) {
        project(entityName: $entity, name: $project) { sweep(sweepName: $sweep) {
        runs(first: 1000) { edges { node { state historyLineCount } } } } } }"""
    printed = client.timings.table()
    told = await client.graphql("check", query, entity=ENTITY, project=PROJECT, sweep=sweep)
    nodes = [edge["node"] for edge in told["project"]["sweep"]["runs"]["edges"]]
    stored = sum(node["historyLineCount"] for node in nodes)
    assert stored == sum(sent), f"{sum(sent)} rows were acknowledged, {stored} are there"
    assert [node["state"] for node in nodes] == ["finished"] * count
    print(
        f"\n{count} concurrent runs, {took:.0f} s: {requests} requests, {requests / took:.0f} a second; ",
        end="",
    )
    print(f"all {stored} acknowledged rows are there\n\n{printed}")


# Large sweeps


def fill(home: Home, config: dict[str, Any], cells: Iterator[dict[str, Any]], count: int) -> str:
    """The name of a sweep with `count` finished runs, written into the home's database without a server."""
    home.server.mkdir(parents=True, exist_ok=True)
    path = home.server / "runs.sqlite3"
    migrate(path)
    database = Database(path)
    rng = random.Random(config["method"])
    server = ServerState(database, home.server / "files", "unused", ServerClock(time.time), rng)
    wanted = {"config": yaml.safe_dump(config), "entity_name": ENTITY, "project_name": PROJECT}
    sweep, problems = database.write(lambda c: sweep_writes.upsert(c, server, wanted))
    assert not problems
    space = read_rules(sweep.config).space
    assert space is not None
    for first in range(0, count, BATCH):
        chosen = list(itertools.islice(cells, min(BATCH, count - first)))
        database.write(partial(_add_finished, server, sweep, space, chosen))
    if config["method"] == "grid":
        database.write(lambda c: sweeps.update(c, sweep.id, grid_cursor=count))
    database.close()
    return sweep.name


def _add_finished(
    server: ServerState,
    sweep: Sweep,
    space: Space,
    configs: list[dict[str, Any]],
    connection: sqlite3.Connection,
) -> None:
    for config in configs:
        run = runs.insert(
            connection,
            project_id=sweep.project_id,
            name=f"{server.rng.getrandbits(40):010x}",
            state=RunState.RUNNING,
            now=server.now(),
            rng=server.rng,
            sweep_id=sweep.id,
            suggested=config,
            cell_key=grid.cell_key(space, config) if "cell" in config else None,
            handed_out=1,
            config=run_writes.as_config_json(config),
        )
        files = _lines(0, ROWS, server.rng)
        body = json.dumps({"files": files, "complete": True, "exitcode": 0}).encode()
        file_stream.receive(connection, server, ENTITY, PROJECT, run.name, file_stream.parse(body))


async def measure_sweeps(client: Client, sweeps_of: dict[str, str], repeats: int) -> None:
    """Note what the answers about large sweeps (their names by method) cost."""
    for _ in range(repeats):
        for name in sweeps_of.values():
            await _read(client, name)
        for method, name in sweeps_of.items():
            # A new agent each time: one that does not report its run would be given the same run again.
            agent = await client.agent(name)
            assert (await client.beat(f"next run, {method}", agent))[0]["type"] == "run"


async def _read(client: Client, sweep: str) -> None:
    """What `wandb.Api().sweep(...)`, its runs and its best run ask for, and the page in the browser."""
    names = {"entity": ENTITY, "project": PROJECT}
    head = """query($entity: String, $project: String, $sweep: String!) {
        project(entityName: $entity, name: $project) { sweep(sweepName: $sweep) {
        id state bestLoss config runCount runCountExpected } } }"""
    listing = """query($entity: String, $project: String, $first: Int, $order: String, $filters: JSONString,
        $after: String) { project(entityName: $entity, name: $project) { runCount(filters: $filters)
        runs(filters: $filters, first: $first, order: $order, after: $after) { edges { node {
        id tags name displayName sweepName state group jobType commit readOnly createdAt heartbeatAt
        description notes historyLineCount user { name } } } pageInfo { endCursor hasNextPage } } } }"""
    full = listing.replace("historyLineCount", "historyLineCount config summaryMetrics systemMetrics")
    runs_of = {**names, "filters": json.dumps({"$and": [{"sweep": sweep}]})}
    await client.graphql("the sweep, its state and best value", head, **names, sweep=sweep)
    await client.graphql("list of 50 runs", listing, **runs_of, first=50, order="+created_at")
    await client.graphql(
        "list of 50 runs, by the metric", listing, **runs_of, first=50, order="+summary_metrics.loss"
    )
    await client.graphql(
        "list of 50 runs, with config and summary", full, **runs_of, first=50, order="-created_at"
    )
    await client.graphql("best run", full, **runs_of, first=1, order="+summary_metrics.loss")
    await client.graphql("best run by another metric", full, **runs_of, first=1, order="+summary_metrics.kl")
    await client.page("the sweep's page in a browser", f"/{ENTITY}/{PROJECT}/sweeps/{sweep}")


def _grid(count: int) -> dict[str, Any]:
    """A grid with more cells than `count`."""
    parameters = {"cell": {"min": 0, "max": count // 4}, "lr": {"values": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]}}
    return {**RANDOM, "method": "grid", "parameters": parameters}


def _grid_cells() -> Iterator[dict[str, Any]]:
    """The cells of that grid, in its order."""
    for number in itertools.count():
        yield {"cell": number // 5, "lr": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)[number % 5]}


def _random_draws(rng: random.Random) -> Iterator[dict[str, Any]]:
    while True:
        yield {"lr": 10 ** rng.uniform(-6, -3), "batch": rng.choice([4, 8, 16])}


# The program


def _bounded(lowest: int, highest: int) -> Callable[[str], int]:
    """A reader of whole numbers within bounds, for argparse."""

    def read(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not between {lowest} and {highest}")
        return value

    return read


async def _with_client(address: LocalServer, work: Callable[[Client], Awaitable[None]]) -> Timings:
    timings = Timings()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)
    async with httpx.AsyncClient(
        base_url=address.url, auth=("api", address.key), limits=limits, timeout=60, trust_env=False
    ) as http:
        await work(Client(http, timings))
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=_bounded(1, 1000), default=200, help="concurrent runs")
    parser.add_argument("--seconds", type=_bounded(5, 600), default=60, help="how long each run logs")
    parser.add_argument(
        "--finished", type=_bounded(100, 50_000), default=10_000, help="runs of a large sweep"
    )
    parser.add_argument("--repeats", type=_bounded(1, 100), default=20, help="questions of each kind")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the start")
    with tempfile.TemporaryDirectory(prefix="kto-sweep-load-") as folder:
        home = Home(Path(folder))
        large = {
            "grid": fill(home, _grid(options.finished), _grid_cells(), options.finished),
            "random": fill(home, RANDOM, _random_draws(random.Random(1)), options.finished),
        }
        address = ensure_server(home)
        try:
            asyncio.run(_with_client(address, lambda c: measure_runs(c, options.runs, options.seconds)))
            timings = asyncio.run(_with_client(address, lambda c: measure_sweeps(c, large, options.repeats)))
        finally:
            stop_server(home)
    size = f"{options.finished:,} finished runs"
    print(f"\nA grid and a random sweep of {size} each, asked {options.repeats} times\n\n{timings.table()}")
    print(f"\nload average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
