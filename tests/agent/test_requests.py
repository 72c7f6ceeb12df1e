"""An agent's requests to a W&B server: no more than stock agents send, and it respects rate limits."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from agent_harness import wait
from forked_python import forked_python
from machine import Machine
from proxy import Proxy, proxy_to

from kto_sweep.agent.heartbeat import HeartbeatLoop
from kto_sweep.local_server.start import ensure_server
from kto_sweep.wandb_client.private_api import Command

GRID = """
method: grid
program: trial.py
parameters:
  learning_rate: {values: [1.0e-3, 2.0e-3]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  batch_size: {value: 2}
  max_steps: {value: 3}
  max_length: {value: 64}
"""
STOCK = """
import time, wandb
with wandb.init() as run:
    time.sleep({seconds})
    for step in range(3):
        run.log({{"loss": 0.5}})
"""
"""A stock trial. Like a short real trial, it spends most of its time loading: wandb sends the first row with
the configuration if both come within seconds, otherwise separately."""


@pytest.fixture(scope="module")
def machine(fake_machine: Machine) -> Machine:
    return fake_machine


@pytest.fixture
def proxy(machine: Machine) -> Iterator[Proxy]:
    with proxy_to(ensure_server(machine.home).url) as proxy:
        yield proxy


def through(machine: Machine, proxy: Proxy) -> dict[str, str]:
    """The environment of a box whose W&B server is the proxy."""
    return {"WANDB_BASE_URL": proxy.url, "WANDB_API_KEY": ensure_server(machine.home).key}


def create(machine: Machine, proxy: Proxy, text: str) -> str:
    (machine.folder / "sweep.yaml").write_text(text)
    made = machine.run("create", "sweep.yaml", "--json", **through(machine, proxy))
    proxy.seen.clear()
    return str(json.loads(made)["path"])


@pytest.mark.slow  # a count of requests, which seldom changes
def test_two_slots_send_no_more_requests_than_two_stock_agents(machine: Machine, proxy: Proxy) -> None:
    path = create(machine, proxy, GRID)
    machine.run("agent", path, "--cpu", "--trials-per-gpu", "2", **through(machine, proxy))
    own = proxy.counts()
    first = next(moment for moment, kind in proxy.seen if kind == "CreateAgent")
    seconds = proxy.seen[-1][0] - first  # per trial: each slot had one
    path = create(machine, proxy, GRID)
    (machine.folder / "trial.py").write_text(STOCK.format(seconds=seconds))
    environment = machine.environment | through(machine, proxy)
    agents = [
        subprocess.Popen(
            [*forked_python(), "-m", "wandb", "agent", path],
            cwd=machine.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [agent.wait(timeout=180) for agent in agents] == [0, 0]
    stock = proxy.counts()
    assert own["CreateAgent"] == stock["CreateAgent"] == 2
    for kind in ("Heartbeat", "UpsertBucket", "file_stream", "Viewer", "file"):
        # wandb sends a run's configuration at most twice a minute; on a busy machine, a change may need
        # another message.
        most = stock[kind] + 2 * (kind == "UpsertBucket")
        assert 0 < own[kind] <= most, (kind, own, stock)
    assert own.total() <= stock.total() + 2, (own, stock)
    assert not own["CreateArtifact"]


def test_a_rate_limited_agent_waits_then_finishes_and_uploads_its_weights(
    machine: Machine, proxy: Proxy
) -> None:
    kinds = {"CreateAgent": 1, "Heartbeat": 2, "UpsertBucket": 1, "file_stream": 1}
    path = create(machine, proxy, GRID.replace(", 2.0e-3", ""))
    for kind, times in kinds.items():
        proxy.refuse(kind, times, retry_after=3)
    environment = through(machine, proxy) | {"WANDB_LOG_MODEL": "end"}
    said = machine.run("agent", path, "--cpu", "--trials-per-gpu", "1", **environment)
    assert "1 of 1 done" in said
    assert proxy.counts()["CreateArtifact"] == 1
    refused = [kind for _, kind in proxy.refused]
    assert {kind: refused.count(kind) for kind in kinds} == kinds
    for moment, kind in proxy.refused:
        after = [seen - moment for seen, other in proxy.seen if other == kind and seen > moment]
        assert min(after) > 2.9, kind


@pytest.mark.slow
def test_an_agent_whose_key_is_revoked_ends_and_its_runs_are_sent_later(
    machine: Machine, proxy: Proxy
) -> None:
    path = create(machine, proxy, GRID.replace("max_steps: {value: 3}", "max_steps: {value: 200}"))
    agent = machine.start(
        "agent", path, "--cpu", "--trials-per-gpu", "1", "--patience", "20", **through(machine, proxy)
    )
    wait(lambda: any(path.read_text().count("\n") > 20 for path in machine.home.runs.glob("*/log.jsonl")))
    proxy.key_is_good = False
    said, _ = agent.communicate(timeout=200)
    assert agent.returncode == 1, said
    assert said.count("the server rejects the key (HTTP 401); retrying") == 1
    assert "The server rejects the key for" in said
    assert "rejects the key.\n" in said
    assert "--relogin, then kto-sweep sync, then kto-sweep agent" in said
    proxy.key_is_good = True
    machine.run("sync", **through(machine, proxy))
    assert "2 of 2 done" in machine.run("agent", path, "--cpu", **through(machine, proxy))
    lengths = [log.read_text().count("\n") for log in machine.home.runs.glob("*/log.jsonl")]
    assert lengths.count(200) == 2  # each trial of other tests has 3


def test_after_a_slow_heartbeat_the_loop_pauses_as_long() -> None:
    began: list[float] = []
    ended: list[float] = []

    def beat(agent_id: str, running: Sequence[str]) -> list[Command]:
        began.append(time.monotonic())
        time.sleep(0.5 if len(began) == 2 else 0)
        ended.append(time.monotonic())
        return []

    loop = HeartbeatLoop(
        lambda: "agent", beat, lambda commands: None, lambda error: None, lambda: True, pytest.fail, 0.01
    )
    threading.Thread(target=loop.run, daemon=True).start()
    deadline = time.monotonic() + 60
    while len(began) < 3 and time.monotonic() < deadline:
        loop.resume([], soon=True)
        time.sleep(0.01)
    loop.end()
    assert began[2] - ended[1] > 0.4
