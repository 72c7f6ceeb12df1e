"""Random accidents on a 3 x 3 grid with two agents: does every cell end once, with every row, as if alone?

    python benchmarks/chaos.py                  # 100 accidents, about half an hour on two idle cores
    python benchmarks/chaos.py --faults 10 --seed 7

Workers, agents, the server and the whole box are killed or stopped, and files damaged, at random moments; the
accidents are those of tests/faults. When a grid is done, another follows until there were enough. Ends with
1, and keeps its files, if anything was lost, done twice or changed.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from accidents import ACCIDENTS
from arena import THREE_BY_THREE, Arena, Losses

STEPS = 400
AGENTS = 2
MOST_ROWS = 20
"""Between two accidents, beside those that are logged while one happens."""
HARM = ("missing cells", "duplicate cells", "lost rows", "duplicate rows", "changed losses")


def undisturbed(folder: Path, steps: int) -> Losses:
    """The losses without accidents."""
    arena = Arena(folder, THREE_BY_THREE, options=("--trials-per-gpu", "9"))
    try:
        arena.create(max_steps=steps, eval_steps=10)
        arena.start_agent()
        arena.finish(3600)
        return arena.losses()
    finally:
        arena.close()


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each trial")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {options.seed}, files in {folder}", flush=True)
    outcome = Outcome()
    began = time.monotonic()
    expected = undisturbed(folder / "undisturbed", options.steps)
    print(f"{time.monotonic() - began:6.0f} s: the grid without accidents is done", flush=True)
    while outcome.injected.total() < options.faults:
        outcome.grids += 1
        one_grid(folder / f"disturbed-{outcome.grids}", options.steps, options.faults, rng, outcome, expected)
        print(f"{time.monotonic() - began:6.0f} s: grid {outcome.grids} is done", flush=True)
    if not outcome.harm.total():
        shutil.rmtree(folder, ignore_errors=True)
    report(outcome, time.monotonic() - began)
    return int(bool(outcome.harm.total()))


@dataclass
class Outcome:
    """What happened to all grids together."""

    grids: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    """Accidents, by part."""
    cells: int = 0
    """Done."""
    rows: int = 0
    harm: Counter[str] = field(default_factory=Counter)


def one_grid(
    folder: Path, steps: int, faults: int, rng: random.Random, outcome: Outcome, expected: Losses
) -> None:
    """Accidents one after another until the grid is done, or there were enough of them."""
    arena = Arena(folder, THREE_BY_THREE, options=("--trials-per-gpu", "2"))
    began = time.monotonic()
    try:
        arena.create(max_steps=steps, eval_steps=10)
        for _ in range(AGENTS):
            arena.start_agent()
        while outcome.injected.total() < faults and not arena.is_over():
            arena.wait_for_progress(rng.randint(1, MOST_ROWS), 600)
            accident = rng.choice(ACCIDENTS)
            print(f"{time.monotonic() - began:6.0f} s, {arena.steps()} rows: {accident.name}", flush=True)
            accident.happen(arena, rng)
            outcome.injected[accident.part] += 1
            while len(arena.alive) < AGENTS and not arena.is_over():
                arena.start_agent()
        arena.finish(3600)
        judge(arena, expected, outcome)
    finally:
        arena.close()


def judge(arena: Arena, expected: Losses, outcome: Outcome) -> None:
    """Add what was lost, done twice or changed."""
    runs = arena.runs()
    for run in runs:
        steps = [row["_step"] for row in run.rows]
        wanted = range(1, len(expected[arena.cell(run)]) + 1)
        losses = dict(zip(wanted, expected[arena.cell(run)], strict=True))
        outcome.rows += len(steps)
        outcome.harm["lost rows"] += len(set(wanted) - set(steps))
        outcome.harm["duplicate rows"] += len(steps) - len(set(steps))
        outcome.harm["changed losses"] += sum(
            abs(row["loss"] - losses[row["_step"]]) > 1e-4 * losses[row["_step"]] for row in run.rows
        )
        if run.state != "finished":
            why = run.summary.get("failure/cause", ""), run.summary.get("failure/message", "")
            print(f"run {run.name} of {arena.cell(run)} is {run.state}", *why, flush=True)
    done = Counter(arena.cell(run) for run in runs if run.state == "finished")
    outcome.cells += len(done)
    outcome.harm["missing cells"] += (arena.expected_cells() - done).total()
    outcome.harm["duplicate cells"] += (Counter(map(arena.cell, runs)) - arena.expected_cells()).total()


def report(outcome: Outcome, seconds: float) -> None:
    """Print the table."""
    print(f"\n{'part':<16}{'injected':>10}")
    for part, count in sorted(outcome.injected.items()):
        print(f"{part:<16}{count:>10}")
    facts = {
        "accidents": outcome.injected.total(),
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
