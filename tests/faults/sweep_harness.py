"""A sweep on a machine of its own: starts its agents, finds every process to kill, and checks the result."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import fake_worker
import forked_python
import httpx
from machine import KTO_SWEEP, ROOT, Machine

from kto_sweep.home import Home
from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server
from kto_sweep.protocol import MESSAGE_FD
from kto_sweep.trial import Trial

# Background jobs of a shell ignore SIGINT, and agents would inherit that until they install a handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROWS = ROOT / "examples" / "support_replies.jsonl"
STEPS = 40
EVAL_STEPS = 5
"""Checkpoints are written after evaluations."""
RUNS = """query($entity: String!, $project: String!, $sweep: String!) {
    project(entityName: $entity, name: $project) { sweep(sweepName: $sweep) {
        state runs { edges { node { name state config summaryMetrics history(samples: 100000) } } } } } }"""

Losses = dict[tuple[Any, ...], list[float]]
"""The losses of a run's steps, by its cell of the grid."""


FIXED: dict[str, Any] = {
    "model_size": "tiny",
    "dataset": str(ROWS),
    "max_length": 96,
    "batch_size": 2,
    "max_steps": STEPS,
    "eval_steps": EVAL_STEPS,
    "eval_fraction": 0.05,
}
"""Parameters that are not searched."""


def grid(axes: Mapping[str, list[Any]], **fixed: Any) -> str:
    """Text of a sweep file, as JSON, which is YAML."""
    values = FIXED | fixed
    parameters = {name: {"values": searched} for name, searched in axes.items()}
    parameters |= {name: {"value": value} for name, value in values.items() if name not in axes}
    return json.dumps({"method": "grid", "parameters": parameters})


TWO_BY_TWO = {"learning_rate": [0.001, 0.003], "seed": [1, 2]}
THREE_BY_THREE: dict[str, list[Any]] = {"learning_rate": [0.001, 0.002, 0.003], "seed": [1, 2, 3]}


@dataclass
class Run:
    """A run as the server has it."""

    name: str
    state: str
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def cells_of(axes: Mapping[str, list[Any]]) -> list[tuple[Any, ...]]:
    """The cells of a grid."""
    return list(itertools.product(*axes.values()))


def fake_losses(axes: Mapping[str, list[Any]]) -> Losses:
    """The losses of a grid that fake workers train."""
    trials = {cell: Trial.from_config(FIXED | dict(zip(axes, cell, strict=True))) for cell in cells_of(axes)}
    return {cell: fake_worker.losses(trial, STEPS) for cell, trial in trials.items()}


@dataclass
class SweepHarness(Machine):
    """A machine with one grid sweep and its agents. `axes` are the searched parameters.

    Its workers are fake unless `cli` is KTO_SWEEP or that of forked_python.
    """

    base_model: ClassVar[Path | None] = None
    """The tiny model, if it exists already; otherwise each worker makes its own."""

    axes: Mapping[str, list[Any]]
    _: KW_ONLY
    cli: tuple[str, ...] = fake_worker.CLI
    options: tuple[str, ...] = ()
    """Command-line options of every agent."""
    server: Home | None = None
    """Home of the server that has the sweep, if not this machine's own."""
    sweep: tuple[str, str, str] = ("", "", "")
    """Entity, project, sweep id."""
    rows: int = 0
    """Rows that the whole sweep logs."""
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def create(self, **fixed: Any) -> None:
        """Create the sweep; `fixed` are parameters with one value."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.base_model is not None and self.cli in (KTO_SWEEP, forked_python.CLI):
            self.add_model(self.base_model)
        entity, project, name = self.create_sweep(grid(self.axes, **fixed))["path"].split("/")
        self.sweep = (entity, project, name)
        self.rows = fixed.get("max_steps", STEPS) * len(cells_of(self.axes))

    def start_agent(self, *options: str) -> subprocess.Popen[bytes]:
        """A new agent, whose output goes to a file."""
        with (self.folder / f"agent-{len(self.agents) + 1:02}.log").open("wb") as log:
            agent = subprocess.Popen(
                [sys.executable, *self.cli, "agent", self.sweep[2], *self.options, *options],
                cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.agents.append(agent)
        return agent

    @property
    def running_agents(self) -> list[subprocess.Popen[bytes]]:
        return [agent for agent in self.agents if agent.poll() is None]

    def output(self) -> str:
        """Output of all agents."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("agent-*.log")))

    def workers(self, agent: subprocess.Popen[bytes] | None = None) -> list[int]:
        """Process ids of all workers of this machine, or of one agent."""
        mine = (f"KTO_SWEEP_HOME={self.home.root}".encode(), MESSAGE_FD.encode())
        pids = []
        for pid, parent, _ in processes():
            if agent is None or parent == agent.pid:
                with suppress(OSError):
                    environ = Path(f"/proc/{pid}/environ").read_bytes()
                    if all(words in environ for words in mine):
                        pids.append(pid)
        return pids

    def server_pid(self) -> int | None:
        return server_pid(self.home)

    def steps(self) -> int:
        """Number of rows in the logs of all trials on disk."""
        count = 0
        for path in self.home.runs.glob("*/log.jsonl"):
            with suppress(OSError):
                count += path.read_bytes().count(b"\n")
        return count

    def wait(self, condition: Callable[[], object], seconds: float = 300, what: str = "that") -> None:
        """Wait until `condition()` is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.output()}"
            time.sleep(0.05)

    def wait_for_progress(self, rows: int = 1, seconds: float = 300) -> None:
        """Wait until the trials have logged `rows` more steps, or all steps, or all agents have exited."""
        target = min(self.steps() + rows, self.rows)
        self.wait(lambda: self.steps() >= target or not self.running_agents, seconds, "the next step")

    def finish(self, seconds: float = 600) -> None:
        """Wait for the agents to exit; start another one until no trial is left."""
        deadline = time.monotonic() + seconds
        while True:
            for agent in self.running_agents:
                agent.wait(max(1.0, deadline - time.monotonic()))
            if self.is_finished():
                return
            assert time.monotonic() < deadline, self.output()
            self.start_agent()

    def is_finished(self) -> bool:
        """Whether no trial is left to run."""
        ended = {run.state for run in self.runs()} <= {"finished", "failed", "killed"}
        return ended and self.sweep_state() == "FINISHED"

    def _query_sweep(self) -> dict[str, Any]:
        address = ensure_server(self.server or self.home)
        body = {
            "query": RUNS,
            "variables": dict(zip(("entity", "project", "sweep"), self.sweep, strict=True)),
        }
        key = ("api", address.key)
        answer = httpx.post(f"{address.url}/graphql", json=body, auth=key, timeout=30, trust_env=False)
        sweep: dict[str, Any] = answer.raise_for_status().json()["data"]["project"]["sweep"]
        return sweep

    def sweep_state(self) -> str:
        return str(self._query_sweep()["state"])

    def runs(self) -> list[Run]:
        """The runs that the server has for the sweep."""
        nodes = [edge["node"] for edge in self._query_sweep()["runs"]["edges"]]
        return [
            Run(
                node["name"],
                node["state"],
                {name: entry["value"] for name, entry in json.loads(node["config"] or "{}").items()},
                json.loads(node["summaryMetrics"] or "{}"),
                [json.loads(row) for row in node["history"]],
            )
            for node in nodes
        ]

    def cell(self, run: Run) -> tuple[Any, ...]:
        """The run's values of the searched parameters."""
        return tuple(run.config[name] for name in self.axes)

    def expected_cells(self) -> Counter[tuple[Any, ...]]:
        return Counter(cells_of(self.axes))

    def losses(self) -> Losses:
        return {self.cell(run): [row["loss"] for row in run.rows if "loss" in row] for run in self.runs()}

    def check(self, baseline: Losses) -> None:
        """Assert that each cell has one finished run, and each run every row once and in order, with the
        baseline's losses, both on the server and on disk.
        """
        runs = self.runs()
        assert Counter(self.cell(run) for run in runs) == self.expected_cells(), self.output()
        assert {run.state for run in runs} == {"finished"}, self.output()
        for run in runs:
            steps = list(range(1, len(baseline[self.cell(run)]) + 1))
            assert [row["_step"] for row in run.rows] == steps, self.output()
            lines = (self.home.runs / run.name / "log.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == steps, self.output()
            for rows in ([json.loads(line) for line in lines], run.rows):
                for row, loss in zip(rows, baseline[self.cell(run)], strict=True):
                    assert abs(row["loss"] - loss) <= 1e-4 * abs(loss), (run.name, row)
        assert not [run for run in runs if "failure/cause" in run.summary], self.output()

    def close(self) -> None:
        """Kill the agents and workers, and stop the server."""
        for agent in self.running_agents:
            agent.kill()
            agent.wait()
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().close()


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent's pid, command line) of every process on this computer."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                yield int(folder.name), parent, words


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A folder that is a disk of `mebibytes`. Raises OSError where it cannot be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        raise OSError("needs root and mount, to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def seeded_random() -> random.Random:
    """A generator whose seed is printed. FAULT_SEED=... repeats a run."""
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={seed}")
    return random.Random(seed)
