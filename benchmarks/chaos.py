"""Random accidents on a 3 x 3 grid with two agents: does every cell end once, with every row, as if alone?

    python benchmarks/chaos.py                  # 100 accidents, about half an hour on two idle cores
    python benchmarks/chaos.py --faults 10 --seed 7

Workers, agents, the server and the whole box are killed or stopped, and files damaged, at random moments; the
accidents are those of tests/faults. Ends with 1 if anything was lost, done twice or changed.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from accidents import ACCIDENTS
from arena import THREE_BY_THREE, Arena, Losses

STEPS = 400
AGENTS = 2


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
    expected = undisturbed(folder / "undisturbed", options.steps)
    arena = Arena(folder / "disturbed", THREE_BY_THREE, options=("--trials-per-gpu", "2"))
    injected: Counter[str] = Counter()
    began = time.monotonic()
    try:
        arena.create(max_steps=options.steps, eval_steps=10)
        for _ in range(AGENTS):
            arena.start_agent()
        every = 9 * options.steps // (2 * options.faults)
        while injected.total() < options.faults and not arena.is_over():
            arena.wait_for_progress(rng.randint(1, max(2, every)), 600)
            accident = rng.choice(ACCIDENTS)
            print(f"{time.monotonic() - began:6.0f} s, {arena.steps()} rows: {accident.name}", flush=True)
            accident.happen(arena, rng)
            injected[accident.part] += 1
            while len(arena.alive) < AGENTS and not arena.is_over():
                arena.start_agent()
        arena.finish(3600)
        return report(arena, injected, expected, time.monotonic() - began)
    finally:
        arena.close()
        shutil.rmtree(folder, ignore_errors=True)


def report(arena: Arena, injected: Counter[str], expected: Losses, seconds: float) -> int:
    """Print what was lost; 1 if there is anything."""
    runs = arena.runs()
    lost = twice = changed = 0
    for run in runs:
        steps = [row["_step"] for row in run.rows]
        wanted = range(1, len(expected[arena.cell(run)]) + 1)
        lost += len(set(wanted) - set(steps))
        twice += len(steps) - len(set(steps))
        losses = dict(zip(wanted, expected[arena.cell(run)], strict=True))
        changed += sum(
            abs(row["loss"] - losses[row["_step"]]) > 1e-4 * losses[row["_step"]] for row in run.rows
        )
    cells = Counter(arena.cell(run) for run in runs if run.state == "finished")
    missing, repeated = arena.expected_cells() - cells, cells - arena.expected_cells()
    print(f"\n{'part':<12}{'injected':>10}")
    for part, count in sorted(injected.items()):
        print(f"{part:<12}{count:>10}")
    facts = {
        "accidents": injected.total(),
        "cells done": cells.total() - repeated.total(),
        "cells missing": missing.total(),
        "duplicate cells": repeated.total(),
        "rows": sum(len(run.rows) for run in runs),
        "lost rows": lost,
        "duplicate rows": twice,
        "changed losses": changed,
        "seconds": round(seconds),
    }
    for name, value in facts.items():
        print(f"{name:<16}{value:>6}")
    return int(bool(missing or repeated or lost or twice or changed))


if __name__ == "__main__":
    sys.exit(main())
