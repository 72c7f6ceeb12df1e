"""How soon the dashboard shows a sweep: 50 runs of 2,000 points each, and 1,000 runs, in headless Chromium.

    python benchmarks/dashboard.py
    python benchmarks/dashboard.py --loads 9 --chromium /usr/bin/google-chrome

Starts a server of its own in a temporary home for each sweep. The first load of each reads everything from
the database, the others find it in the server's memory; each is a fresh browser with an empty cache. Browser
and server share the machine's cores. The goals: header and table of 50 runs within 1.5 s, of 1,000 within 1.
"""

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from kto_sweep.home import Home
from kto_sweep.local_server.start import LocalServer, ensure_server, stop_server
from kto_sweep.server.states import RunState
from kto_sweep.server.store import lines, projects, runs, sweeps
from kto_sweep.server.store.database import Database
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.migrations import migrate

SWEEP = """
name: benchmark
method: random
metric: {name: eval/common_loss, goal: minimize}
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1.0e-6, max: 1.0e-3}
  batch_size: {values: [4, 8, 16]}
"""
ARGUMENTS = "--no-sandbox --disable-quic --no-first-run --disable-background-networking".split()

# Milliseconds since the navigation began, looked at in every frame.
WATCH = """() => new Promise((done) => {
  const seen = {};
  const look = () => {
    const note = (name, there) => { if (there && !(name in seen)) seen[name] = performance.now(); };
    note("table", document.querySelector("h1") && document.querySelector("table.runs tbody tr"));
    const charts = [...document.querySelectorAll("#curves .chart")];
    note("one chart", charts.some((chart) => chart.querySelector(".main-svg")));
    note("four charts", charts.length === 4 && charts.every((chart) => chart.querySelector(".main-svg")));
    if ("four charts" in seen || performance.now() > 60000) done(seen);
    else requestAnimationFrame(look);
  };
  look();
})"""


def fill(home: Home, count: int, points: int) -> str:
    """The path of a sweep with so many finished runs, written straight into the home's database."""
    home.server.mkdir(parents=True)
    path = home.server / "runs.sqlite3"
    migrate(path)
    database, rng, now = Database(path), random.Random(1), time.time()
    project = database.write(lambda c: projects.ensure(c, "local", "benchmark", now))
    sweep = database.write(
        lambda c: sweeps.insert(c, project_id=project.id, name="bench", config=SWEEP, now=now)
    )
    for number in range(count):
        rate, batch = 10 ** rng.uniform(-6, -3), rng.choice([4, 8, 16])
        rows = [json.dumps(_row(step, points, rate, batch, rng)) for step in range(points)]
        run = database.write(
            lambda c, number=number, rate=rate, batch=batch, last=rows[-1]: runs.insert(  # type: ignore[misc]
                c,
                project_id=project.id,
                name=f"run{number:04}",
                state=RunState.FINISHED,
                now=now,
                rng=rng,
                sweep_id=sweep.id,
                config=json.dumps({"learning_rate": {"value": rate}, "batch_size": {"value": batch}}),
                summary=last,
            )
        )
        database.write(lambda c, run=run, rows=rows: lines.write(c, run.id, Stream.HISTORY, 0, rows))  # type: ignore[misc]
    database.close()
    return "/local/benchmark/sweeps/bench"


def _row(step: int, points: int, rate: float, batch: int, rng: random.Random) -> dict[str, float]:
    """What a trial logs at a step: as many numbers as a real one."""
    gain = (1 - math.exp(-3 * step / points)) * (6 + math.log10(rate))
    noise = rng.gauss(0, 0.05)
    return {
        "_step": step,
        "_runtime": step * 0.5,
        "loss": 0.5 - 0.05 * gain + noise,
        "rewards/margins": gain + noise,
        "rewards/chosen": gain / 2 + noise,
        "rewards/rejected": -gain / 2 + noise,
        "kl": max(0.0, 0.1 * gain + noise),
        "kl_raw": 0.1 * gain + noise,
        "logps/chosen": -100 + noise,
        "logps/rejected": -120 + noise,
        "grad_norm": 1 + noise,
        "learning_rate": rate,
        "epoch": step / points,
        "tokens_per_second": 4000 + 100 * noise,
        "gpu/memory_allocated_gb": 6.0 + batch,
        "gpu/memory_peak_gb": 8.0 + batch,
        "gpu/memory_reserved_gb": 9.0 + batch,
        "eval/common_loss": 0.5 - 0.04 * gain + noise / 10,
    }


def measure(count: int, points: int, loads: int, chromium: str) -> None:
    """Print how soon the page of such a sweep is there."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        path = fill(home, count, points)
        server = ensure_server(home)
        try:
            told = [_load(server, path, chromium) for _ in range(loads + 1)]
        finally:
            stop_server(home)
    print(f"{count} runs x {points} points")
    for name in ("table", "one chart", "four charts"):
        median = statistics.median(each[name] for each in told[1:])
        print(f"  {name:12} {median:6.0f} ms   first load {told[0][name]:6.0f} ms")


def _load(server: LocalServer, path: str, chromium: str) -> dict[str, float]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.request.get(server.login_link())  # which leaves the browser's cache of files empty
        page.goto(server.url + path, wait_until="commit")
        seen: dict[str, float] = page.evaluate(WATCH)
        browser.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=int, default=5, help="after the first; their median is told")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    measure(50, 2000, options.loads, options.chromium)
    measure(1000, 100, options.loads, options.chromium)


if __name__ == "__main__":
    main()
