"""Large sweeps: 50,000 finished runs, a run of 1,000,000 history rows, a grid of 1,000,000 cells.

    python benchmarks/size.py
    python benchmarks/size.py --runs 2000 --rows 20000 --cells 20000        # a short one

Writes the sweeps into the database of a temporary home (`--home`: one that stays, and is filled only once),
starts its server, and measures each command as a user types it, and what the sweep's page first loads: wall
and CPU seconds, peak memory of the command, and the peak of the server so far. The goals: status of the runs
within 5 s and 200 MB, compare within 15 s, the page's first data below 1 MB, the page of the long run within
2 s, and the commands for the grid within seconds and 300 MB.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from kto_sweep.home import Home
from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import LocalServer, ensure_server, stop_server
from kto_sweep.search import grid
from kto_sweep.search.space import Space
from kto_sweep.server import history_blocks, run_writes, sweep_writes
from kto_sweep.server.server_state import ServerClock, ServerState
from kto_sweep.server.states import RunState, SweepState
from kto_sweep.server.store import lines, runs, sweeps
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.migrations import migrate
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import read_rules
from kto_sweep.sweep.ref import DEFAULT_PROJECT, LOCAL_ENTITY
from kto_sweep.trial import Trial

BATCH = 1000
"""Runs, and history rows, per commit while the sweeps are written."""
POINTS = 12
"""History rows of each of the many runs."""
METRIC = "eval/common_loss"
ROW = {
    "name": "size",
    "method": "grid",
    "metric": {"name": METRIC, "goal": "minimize"},
}


# The sweeps


def many_runs(count: int) -> dict[str, Any]:
    """A grid of about `count` cells."""
    side = max(2, math.isqrt(max(1, count // 4)))
    parameters: dict[str, Any] = {
        "dataset": {"value": "rows.jsonl"},
        "model_size": {"value": "tiny"},
        "batch_size": {"values": [4, 8, 16, 32]},
        "learning_rate": {"values": [float(f"{1e-6 * 1.02**number:.6g}") for number in range(side)]},
        "beta": {"values": [round(0.01 + 0.001 * number, 3) for number in range(-(-count // (4 * side)))]},
    }
    return {**ROW, "run_cap": count, "parameters": parameters}


def long_run() -> dict[str, Any]:
    """A grid of one cell."""
    return {
        **ROW,
        "name": "long run",
        "parameters": {"dataset": {"value": "rows.jsonl"}, "model_size": {"value": "tiny"}},
    }


def fill_runs(home: Home, count: int) -> str:
    """The name of a finished sweep with `count` finished runs as kto-sweep's agent leaves them."""
    return _fill(home, many_runs(count), count, POINTS)


def fill_rows(home: Home, count: int) -> str:
    """The name of a sweep whose only run has `count` history rows."""
    return _fill(home, long_run(), 1, count)


def _fill(home: Home, config: Mapping[str, Any], count: int, rows: int) -> str:
    home.server.mkdir(parents=True, exist_ok=True)
    path = home.server / "runs.sqlite3"
    migrate(path)
    database = Database(path)
    rng = random.Random(str(config["name"]))
    server = ServerState(database, home.server / "files", "unused", ServerClock(time.time), rng)
    wanted = {
        "config": yaml.safe_dump(dict(config)),
        "entity_name": LOCAL_ENTITY,
        "project_name": DEFAULT_PROJECT,
    }
    sweep, problems = database.write(lambda c: sweep_writes.upsert(c, server, wanted))
    assert not problems, problems
    space = read_rules(sweep.config).space
    assert space is not None
    cells = grid.cells(space)
    for first in range(0, count, BATCH):
        chosen = [config for _, (_, config) in zip(range(min(BATCH, count - first)), cells, strict=False)]
        database.write(partial(_add_finished, server, sweep, space, chosen, min(rows, POINTS)))
    if rows > POINTS:
        for first in range(POINTS, rows, 100 * BATCH):
            database.write(partial(_add_rows, sweep, first, min(100 * BATCH, rows - first)))
    database.write(
        lambda c: sweeps.update(c, sweep.id, grid_cursor=count, exhausted=True, state=SweepState.FINISHED)
    )
    database.close()
    return sweep.name


def _add_finished(
    server: ServerState,
    sweep: Sweep,
    space: Space,
    configs: list[dict[str, Any]],
    rows: int,
    connection: Any,
) -> None:
    now = server.now()
    for number, config in enumerate(configs):
        rate = math.log10(config.get("learning_rate", 1e-5) / 4e-6)
        loss = 0.3 + 0.01 * server.rng.random() + config.get("beta", 0.1) / 10 + rate**2 / 20
        summary = _summary(loss, server.rng, now, rows)
        run = runs.insert(
            connection,
            project_id=sweep.project_id,
            name=f"{server.rng.getrandbits(40):010x}",
            display_name=f"steady-summit-{sweep.id}-{number}",
            state=RunState.FINISHED,
            exitcode=0,
            now=now,
            rng=server.rng,
            sweep_id=sweep.id,
            suggested=config,
            cell_key=grid.cell_key(space, config),
            handed_out=1,
            host="gpu-box",
            program="kto-sweep",
            config=_run_config(config),
            summary=json.dumps(summary),
        )
        runs.update(connection, run.id, objective=METRIC, objective_value=loss)
        lines.write(connection, run.id, Stream.HISTORY, 0, _rows(0, rows, server.rng))


def _add_rows(sweep: Sweep, first: int, count: int, connection: Any) -> None:
    run = runs.of_sweep(connection, sweep.id)[0]
    lines.write(connection, run.id, Stream.HISTORY, first, _rows(first, count, random.Random(first)))
    history_blocks.update(connection, run, limit=count)


def _rows(first: int, count: int, rng: random.Random) -> list[str]:
    return [
        json.dumps(
            {
                "_step": step,
                "_runtime": 1.5 * step,
                "_timestamp": 1.7e9 + step,
                "loss": 0.5 - step * 1e-7 + rng.random() / 100,
                "kl": rng.random(),
                "rewards/margins": 1 - math.exp(-step / 100) + rng.random() / 10,
                "grad_norm": rng.random(),
                "learning_rate": 1e-5,
                "epoch": step / 1e4,
            }
        )
        for step in range(first, first + count)
    ]


def _summary(loss: float, rng: random.Random, now: float, steps: int) -> dict[str, Any]:
    """What a trial of kto-sweep's agent leaves in its run's summary."""
    start = now - 3600 * rng.random()
    names: tuple[str, ...] = (
        "loss",
        "kl",
        "kl_raw",
        "grad_norm",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
    )
    names += ("eval/auc", "eval/loss", "eval/kl", "eval/kl_raw", "eval/margins", "eval/dprime")
    names += ("logps/chosen", "logps/rejected", "tokens_per_second", "learning_rate", "epoch")
    return {
        **{name: rng.random() for name in names},
        METRIC: loss,
        "objective/best": loss,
        "objective/last": loss,
        "trial/steps": steps,
        "trial/examples": 8 * steps,
        "trial/seconds": 20 + rng.random(),
        "trial/data": "3bed17b0951e5a02",
        "trial/eval_data": "1c150c64193281a1",
        "trial/model": "float32:20faf7c0ce643a9b",
        "_step": steps,
        "_runtime": 21.5,
        "_timestamp": now,
        "_busy": [["f12a91117391cf8a gpu 0", start, start + 20]],
        "_wandb": {"runtime": 21},
    }


def _run_config(config: Mapping[str, Any]) -> str:
    """A run's configuration with all parameters, and what wandb and kto-sweep record of its machine."""
    machine = dict.fromkeys(("os", "host", "executable", "program", "root", "cpu", "disk"), "x" * 60)
    record = {
        "model": {name: f"{name} of the model" for name in ("fingerprint", "architecture", "dtype", "name")},
        "data": {name: f"{name} of the rows" for name in ("fingerprint", "path", "train", "held_out")},
        "environment": {f"package-{number}": "1.16.0" for number in range(20)},
        "command": ["kto-sweep", "agent"],
    }
    trial = Trial.from_config(config).to_config()
    values = {**config, **trial, "_home": "f12a91117391cf8a", "_device": "gpu 0", "record": record}
    text = json.loads(run_writes.as_config_json(values))
    return json.dumps({**text, "_wandb": {"value": {"cli_version": "0.31.0", "e": {"0": machine}}}})


# What is measured


@dataclass
class Measure:
    """One line of the table."""

    what: str
    wall: float
    """Seconds."""
    cpu: float
    """Seconds of the command and of the server."""
    peak_mib: float | None
    """The command's peak resident memory."""
    server_mib: float
    """The server's peak so far."""
    note: str = ""


class Bench:
    """Runs commands against a home's server, and notes what they cost."""

    def __init__(self, home: Home, server: LocalServer) -> None:
        self._home = home
        self._browser = httpx.Client(timeout=600, trust_env=False, follow_redirects=True)
        self._browser.get(server.login_link()).raise_for_status()
        self.table: list[Measure] = []

    def command(self, what: str, *arguments: str, folder: Path | None = None) -> str:
        """Standard output of `kto-sweep ARGUMENTS`. Raises RuntimeError if it fails."""
        environment = os.environ | {"KTO_SWEEP_HOME": str(self._home.root), "WANDB_SILENT": "true"}
        with tempfile.TemporaryFile("w+") as out, self._server_cpu() as spent:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "kto_sweep", *arguments],
                env=environment,
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            text = out.read()
        if process.returncode != 0:
            raise RuntimeError(f"kto-sweep {' '.join(arguments)}: exit status {process.returncode}\n{text}")
        cpu = usage.ru_utime + usage.ru_stime + spent()
        self._note(Measure(what, wall, cpu, usage.ru_maxrss / 1024, self._server_peak(), _size(len(text))))
        return text

    def fetch(self, what: str, url: str) -> Any:
        """The JSON at a URL of the server."""
        with self._server_cpu() as spent:
            start = time.perf_counter()
            answer = self._browser.get(url).raise_for_status()
            wall = time.perf_counter() - start
        self._note(Measure(what, wall, spent(), None, self._server_peak(), _size(len(answer.content))))
        return answer.json()

    def _note(self, measure: Measure) -> None:
        self.table.append(measure)
        print(_line(measure), flush=True)

    @contextmanager
    def _server_cpu(self) -> Iterator[Callable[[], float]]:
        before = self._server_seconds()
        yield lambda: self._server_seconds() - before

    def _server_seconds(self) -> float:
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0

    def _server_peak(self) -> float:
        line = next((line for line in self._proc("status").splitlines() if line.startswith("VmHWM")), "")
        return int(line.split()[1]) / 1024 if line else 0.0

    def _proc(self, name: str) -> str:
        pid = server_pid(self._home)
        return Path(f"/proc/{pid}/{name}").read_text() if pid is not None else ""


HEAD = (
    "| what | wall s | CPU s | command's peak MiB | server's peak MiB | bytes |\n"
    "|---|---:|---:|---:|---:|---:|"
)


def _line(measure: Measure) -> str:
    peak = "" if measure.peak_mib is None else f"{measure.peak_mib:.0f}"
    return (
        f"| {measure.what} | {measure.wall:.2f} | {measure.cpu:.2f} | {peak} | {measure.server_mib:.0f} "
        f"| {measure.note} |"
    )


def _size(count: int) -> str:
    return f"{count:,}"


def measure_runs(bench: Bench, url: str, sweep: str) -> None:
    """The commands and the page of the sweep of many runs."""
    bench.command("status, first time", "status", sweep, "--local")
    bench.command("status again", "status", sweep, "--local")
    bench.command("compare", "compare", sweep, "--local")
    data = f"{url}/-/data/{LOCAL_ENTITY}/{DEFAULT_PROJECT}/sweeps/{sweep}"
    bench.fetch("page: first data", data)
    bench.fetch("page: first data again", data)
    bench.fetch("page: verdict and importance", f"{data}/comparison")
    bench.fetch("list of sweeps", f"{url}/-/data/sweeps")


def measure_rows(bench: Bench, url: str, sweep: str, run: str) -> None:
    """The commands and the pages of the sweep whose run is long."""
    project = f"{url}/-/data/{LOCAL_ENTITY}/{DEFAULT_PROJECT}"
    bench.fetch("long run: page", f"{project}/runs/{run}")
    bench.fetch("long run: curves, first time", f"{project}/curves?run={run}&key=loss&key=kl&points=400")
    bench.fetch("long run: curves again", f"{project}/curves?run={run}&key=loss&key=kl&points=400")
    bench.command("long run: compare", "compare", sweep, "--local")


def measure_grid(bench: Bench, folder: Path, cells: int) -> None:
    """The commands for a grid of many cells."""
    side = max(2, round(cells ** (1 / 3)))
    parameters = {
        "dataset": {"value": "rows.jsonl"},
        "model_size": {"value": "tiny"},
        "learning_rate": {"values": [1e-6 * 1.02**number for number in range(side)]},
        "beta": {"values": [0.01 + 0.001 * number for number in range(side)]},
        "batch_size": {"values": list(range(2, side + 2))},
    }
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({**ROW, "name": "large grid", "parameters": parameters}))
    message = '{"prompt": "Where is parcel %d?", "completion": "It arrives soon.", "label": %s}\n'
    text = "".join(message % (number, str(number % 2 == 0).lower()) for number in range(400))
    (folder / "rows.jsonl").write_text(text)
    bench.command("grid: validate", "validate", "grid.yaml", folder=folder)
    bench.command("grid: plan", "plan", "grid.yaml", folder=folder)
    bench.command("grid: create", "create", "grid.yaml", "--local", folder=folder)
    bench.command("grid: status", "status", "--local", folder=folder)


def _write_sweeps(home: Home, marker: Path, count: int, rows: int) -> None:
    names = {"runs": fill_runs(home, count), "rows": fill_rows(home, rows)}
    marker.write_text(json.dumps(names))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50_000, help="finished runs of a sweep")
    parser.add_argument("--rows", type=int, default=1_000_000, help="history rows of a run")
    parser.add_argument("--cells", type=int, default=1_000_000, help="cells of a grid")
    parser.add_argument("--home", type=Path, help="an empty folder for the sweeps, or one of an earlier call")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the start", flush=True)
    with tempfile.TemporaryDirectory(prefix="kto-sweep-size-") as scratch:
        home = Home(options.home or Path(scratch) / "home")
        marker = home.root / "size.json"
        if not marker.exists():
            start = time.perf_counter()
            # Another process: the peak memory of a command counts from that of the process that starts it.
            writer = multiprocessing.Process(
                target=_write_sweeps, args=(home, marker, options.runs, options.rows)
            )
            writer.start()
            writer.join()
            if writer.exitcode != 0:
                raise RuntimeError("the sweeps could not be written")
            print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        names = json.loads(marker.read_text())
        server = ensure_server(home)
        url = server.url
        try:
            bench = Bench(home, server)
            print(f"\n{options.runs:,} runs, {options.rows:,} rows, {options.cells:,} cells\n\n{HEAD}")
            measure_runs(bench, url, names["runs"])
            trials = json.loads(
                bench.command("long run: status", "status", names["rows"], "--local", "--json")
            )
            measure_rows(bench, url, names["rows"], trials["cells"][0]["run"])
            measure_grid(bench, Path(scratch), options.cells)
        finally:
            stop_server(home)
    print(f"\nload average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
