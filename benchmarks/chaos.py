"""Inject random faults into a 3 x 3 grid with two agents: is every cell trained once, with every row?

    python benchmarks/chaos.py                  # 100 faults, about half an hour on two idle cores
    python benchmarks/chaos.py --faults 10 --seed 7
    python benchmarks/chaos.py --only "power is cut" --faults 20
    python benchmarks/chaos.py --only frozen --freeze-seconds 600 --faults 6

At random moments the faults of tests/faults/faults.py kill or pause workers, agents, the server or the whole
machine, or damage files; those of `frozen` are among them only when named. When a grid is done, another one
starts, until there were enough faults. Exits with 1, and keeps the files, if anything was lost, done twice or
changed.
"""

import argparse
import atexit
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

import python_forkserver
from faults import FAULTS, Fault, freezes
from machine import KTO_SWEEP
from sweep_harness import THREE_BY_THREE, Losses, SweepHarness

STEPS = 400
AGENTS = 2
MOST_ROWS = 20
"""Most rows logged between two faults, not counting those logged during a fault."""
HARM = ("missing cells", "duplicate cells", "lost rows", "duplicate rows", "changed losses")


@dataclass(frozen=True)
class Baseline:
    """The grid without faults."""

    losses: Losses
    finished: Counter[tuple[Any, ...]]
    """The cells that finished; others diverge, with faults too."""


def baseline(folder: Path, steps: int) -> Baseline:
    """Train the grid without faults."""
    harness = SweepHarness(folder, THREE_BY_THREE, options=("--trials-per-gpu", "9"), cli=KTO_SWEEP)
    try:
        harness.create(max_steps=steps, eval_steps=10)
        harness.start_agent()
        harness.finish(3600)
        finished = Counter(harness.cell(run) for run in harness.runs() if run.state == "finished")
        return Baseline(harness.losses(), finished)
    finally:
        harness.close()


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each trial")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", default="", help="inject only faults with this in their name")
    parser.add_argument("--freeze-seconds", type=float, default=600, help="how long what is frozen stops")
    options = parser.parse_args()
    frozen = freezes(options.freeze_seconds) if options.only else []
    faults = [fault for fault in (*FAULTS, *frozen) if options.only in fault.name]
    if not faults:
        parser.error(f"no fault has {options.only!r} in its name")
    atexit.register(python_forkserver.start())
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {options.seed}, files in {folder}", flush=True)
    outcome = UpdateResult()
    began = time.monotonic()
    expected = baseline(folder / "baseline", options.steps)
    print(f"{time.monotonic() - began:6.0f} s: the grid without faults is done", flush=True)
    while outcome.injected.total() < options.faults:
        outcome.grids += 1
        one_grid(
            folder / f"faults-{outcome.grids}", options.steps, faults, options.faults, rng, outcome, expected
        )
        print(f"{time.monotonic() - began:6.0f} s: grid {outcome.grids} is done", flush=True)
    if not outcome.harm.total():
        shutil.rmtree(folder, ignore_errors=True)
    report(outcome, time.monotonic() - began)
    return int(bool(outcome.harm.total()))


@dataclass
class UpdateResult:
    """Totals over all grids."""

    grids: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    """Number of faults, by name."""
    cells: int = 0
    """Number of finished cells."""
    rows: int = 0
    harm: Counter[str] = field(default_factory=Counter)


def one_grid(
    folder: Path,
    steps: int,
    faults: Sequence[Fault],
    count: int,
    rng: random.Random,
    outcome: UpdateResult,
    expected: Baseline,
) -> None:
    """Inject some of these faults, one after another, until the grid is done or `count` were injected."""
    harness = SweepHarness(folder, THREE_BY_THREE, options=("--trials-per-gpu", "2"), cli=KTO_SWEEP)
    began = time.monotonic()
    try:
        harness.create(max_steps=steps, eval_steps=10)
        for _ in range(AGENTS):
            harness.start_agent()
        while outcome.injected.total() < count and not harness.is_finished():
            harness.wait_for_progress(rng.randint(1, MOST_ROWS), 600)
            fault = rng.choice(faults)
            print(f"{time.monotonic() - began:6.0f} s, {harness.steps()} rows: {fault.name}", flush=True)
            fault.inject(harness, rng)
            outcome.injected[fault.name] += 1
            while len(harness.running_agents) < AGENTS and not harness.is_finished():
                harness.start_agent()
        harness.finish(3600)
        judge(harness, expected, outcome)
    finally:
        harness.close()


def judge(harness: SweepHarness, expected: Baseline, outcome: UpdateResult) -> None:
    """Count in `outcome` what was lost, done twice or changed."""
    runs = harness.runs()
    for run in runs:
        steps = [row["_step"] for row in run.rows]
        expected_losses = expected.losses[harness.cell(run)]
        expected_steps = range(1, len(expected_losses) + 1)
        losses = dict(zip(expected_steps, expected_losses, strict=True))
        outcome.rows += len(steps)
        outcome.harm["lost rows"] += len(set(expected_steps) - set(steps))
        outcome.harm["duplicate rows"] += len(steps) - len(set(steps))
        outcome.harm["changed losses"] += sum(
            abs(row["loss"] - losses[row["_step"]]) > 1e-4 * losses[row["_step"]] for row in run.rows
        )
        if run.state != "finished":
            why = run.summary.get("failure/cause", ""), run.summary.get("failure/message", "")
            print(f"run {run.name} of {harness.cell(run)} is {run.state}", *why, flush=True)
    done = Counter(harness.cell(run) for run in runs if run.state == "finished")
    outcome.cells += len(done)
    outcome.harm["missing cells"] += (expected.finished - done).total()
    outcome.harm["duplicate cells"] += (Counter(map(harness.cell, runs)) - harness.expected_cells()).total()


def report(outcome: UpdateResult, seconds: float) -> None:
    """Print the table."""
    print(f"\n{'fault':<48}{'injected':>10}")
    for name, count in sorted(outcome.injected.items()):
        print(f"{name:<48}{count:>10}")
    facts = {
        "faults": outcome.injected.total(),
        "grids": outcome.grids,
        "cells done": outcome.cells,
        "rows": outcome.rows,
        **{name: outcome.harm[name] for name in HARM},
        "seconds": round(seconds),
    }
    print()
    for name, value in facts.items():
        print(f"{name:<16}{value:>10}")


if __name__ == "__main__":
    sys.exit(main())
