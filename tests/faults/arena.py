"""A sweep on a box of its own, with all that can be killed within reach: agents, workers, the server."""

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kto_sweep.home import Home
from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server, stop_server

# What a shell starts in the background ignores Ctrl-C, and so would agents until they handle it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "examples" / "support_replies.jsonl"
STEPS = 40
EVAL_STEPS = 5
"""Checkpoints come after evaluations."""
RUNS = """query($entity: String!, $project: String!, $sweep: String!) {
    project(entityName: $entity, name: $project) { sweep(sweepName: $sweep) {
        state runs { edges { node { name state config summaryMetrics history(samples: 100000) } } } } } }"""

Losses = dict[tuple[Any, ...], list[float]]
"""The loss of every step, by cell."""


def grid(axes: Mapping[str, list[Any]], **fixed: Any) -> str:
    """A sweep file, as JSON is YAML."""
    values = {"model_size": "tiny", "dataset": str(ROWS), "max_length": 96, "batch_size": 2}
    values |= {"max_steps": STEPS, "eval_steps": EVAL_STEPS, "eval_fraction": 0.05} | fixed
    parameters = {name: {"values": found} for name, found in axes.items()}
    parameters |= {name: {"value": value} for name, value in values.items() if name not in axes}
    return json.dumps({"method": "grid", "parameters": parameters})


TWO_BY_TWO = {"learning_rate": [0.001, 0.003], "seed": [1, 2]}
THREE_BY_THREE = {"learning_rate": [0.001, 0.002, 0.003], "seed": [1, 2, 3]}


@dataclass
class Run:
    """A run as the server has it."""

    name: str
    state: str
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass
class Arena:
    """One box. `axes` are those of its grid."""

    base_model: ClassVar[Path | None] = None
    """The tiny one, if it was made before. Otherwise each box makes its own."""

    folder: Path
    axes: Mapping[str, list[Any]]
    environ: dict[str, str] = field(default_factory=dict)
    """Added to that of every command."""
    options: tuple[str, ...] = ()
    """Of every agent."""
    server: Home | None = None
    """Where the server is, if not on this box."""
    sweep: tuple[str, str, str] = ("", "", "")
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _logs: int = 0

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    def environment(self) -> dict[str, str]:
        names = ("PATH", "LANG", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        own = {"HOME": str(self.folder), "KTO_SWEEP_HOME": str(self.home.root), "OMP_NUM_THREADS": "1"}
        return kept | own | self.environ

    def patch(self, code: str) -> None:
        """Have each Python process of this box run this as it starts."""
        site = self.folder / "site"
        site.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(code)
        before = self.environ.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
        self.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), before]))

    def command(self, *args: str) -> str:
        """Standard output of a command that must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "kto_sweep", *args],
            cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def create(self, **fixed: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.base_model is not None:
            shutil.copytree(self.base_model, self.home.models / self.base_model.name, dirs_exist_ok=True)
        (self.folder / "sweep.yaml").write_text(grid(self.axes, **fixed))
        path = json.loads(self.command("create", "sweep.yaml", "--json"))["path"]
        entity, project, name = path.split("/")
        self.sweep = (entity, project, name)

    def start_agent(self, *options: str) -> subprocess.Popen[bytes]:
        """An agent whose output goes to a file."""
        self._logs += 1
        with (self.folder / f"agent-{self._logs:02}.log").open("wb") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "kto_sweep", "agent", self.sweep[2], *self.options, *options],
                cwd=self.folder, env=self.environment(), stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.agents.append(agent)
        return agent

    @property
    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [agent for agent in self.agents if agent.poll() is None]

    def said(self) -> str:
        """What all agents have printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("agent-*.log")))

    def workers(self, agent: subprocess.Popen[bytes] | None = None) -> list[int]:
        """Process ids of the workers of this box, or of one agent."""
        mine = f"KTO_SWEEP_HOME={self.home.root}".encode()
        found = []
        for pid, parent, words in processes():
            if "kto_sweep.train.worker" in words and (agent is None or parent == agent.pid):
                with suppress(OSError):
                    if mine in Path(f"/proc/{pid}/environ").read_bytes():
                        found.append(pid)
        return found

    def server_pid(self) -> int | None:
        return server_pid(self.home)

    def steps(self) -> int:
        """Rows that all trials have on disk."""
        count = 0
        for path in self.home.runs.glob("*/log.jsonl"):
            with suppress(OSError):
                count += path.read_bytes().count(b"\n")
        return count

    def wait(self, condition: Callable[[], object], seconds: float = 300, what: str = "that") -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it never came to {what}\n{self.said()}"
            time.sleep(0.05)

    def wait_for_progress(self, rows: int = 1, seconds: float = 300) -> None:
        """Until so many more steps were taken, or everything has ended."""
        wanted = self.steps() + rows
        self.wait(lambda: self.steps() >= wanted or not self.alive, seconds, "the next step")

    def finish(self, seconds: float = 600) -> None:
        """Wait for the agents; one more does what they have left."""
        deadline = time.monotonic() + seconds
        while True:
            for agent in self.alive:
                agent.wait(max(1.0, deadline - time.monotonic()))
            if self.is_over():
                return
            assert time.monotonic() < deadline, self.said()
            self.start_agent()

    def is_over(self) -> bool:
        """Whether no trial is left to be done."""
        over = {run.state for run in self.runs()} <= {"finished", "failed", "killed"}
        return over and self.sweep_state() == "FINISHED"

    def _ask(self) -> dict[str, Any]:
        address = ensure_server(self.server or self.home)
        body = {
            "query": RUNS,
            "variables": dict(zip(("entity", "project", "sweep"), self.sweep, strict=True)),
        }
        request = urllib.request.Request(f"{address.url}/graphql", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        token = base64.b64encode(f"api:{address.key}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            found: dict[str, Any] = json.loads(response.read())["data"]["project"]["sweep"]
            return found

    def sweep_state(self) -> str:
        return str(self._ask()["state"])

    def runs(self) -> list[Run]:
        nodes = [edge["node"] for edge in self._ask()["runs"]["edges"]]
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
        return tuple(run.config[name] for name in self.axes)

    def expected_cells(self) -> Counter[tuple[Any, ...]]:
        cells: list[tuple[Any, ...]] = [()]
        for values in self.axes.values():
            cells = [(*cell, value) for cell in cells for value in values]
        return Counter(cells)

    def losses(self) -> Losses:
        return {self.cell(run): [row["loss"] for row in run.rows if "loss" in row] for run in self.runs()}

    def check(self, undisturbed: Losses) -> None:
        """Every cell once and finished; every row once and in order, on server and disk; the same losses."""
        runs = self.runs()
        assert Counter(self.cell(run) for run in runs) == self.expected_cells(), self.said()
        assert {run.state for run in runs} == {"finished"}, self.said()
        for run in runs:
            steps = list(range(1, len(undisturbed[self.cell(run)]) + 1))
            assert [row["_step"] for row in run.rows] == steps, self.said()
            lines = (self.home.runs / run.name / "log.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == steps, self.said()
            for rows in ([json.loads(line) for line in lines], run.rows):
                for row, loss in zip(rows, undisturbed[self.cell(run)], strict=True):
                    assert abs(row["loss"] - loss) <= 1e-4 * abs(loss), (run.name, row)
        assert not [run for run in runs if "failure/cause" in run.summary], self.said()

    def close(self) -> None:
        for agent in self.alive:
            agent.kill()
            agent.wait()
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stop_server(self.home)


def processes() -> Iterator[tuple[int, int, str]]:
    """(process, its parent, its command line) of all there are."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                yield int(folder.name), parent, words


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of its own; raises OSError where it cannot be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        raise OSError("no disk of its own can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def seeded() -> random.Random:
    """A generator whose seed is printed; FAULT_SEED repeats a run."""
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={seed}")
    return random.Random(seed)
