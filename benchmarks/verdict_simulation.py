"""Measures how often the verdict of `compare` is right, on simulated sweeps with a known best configuration.

    python benchmarks/verdict_simulation.py [--sweeps 300] [--json FILE]

Each sweep has a noise-free surface (a loss over learning rate and beta with one optimum), seed noise that is
equal for all configurations or differs between them, and for some kinds several equally good configurations.
The sweeps pass through kto_sweep.compare as real ones do. A verdict `clear` is right if its winner is the
configuration with the lowest noise-free loss; with equally good ones it is always wrong.
"""

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.compare.confidence import DEGREES, DEVIATION
from kto_sweep.compare.ranking import rank
from kto_sweep.compare.verdict import make_verdicts
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView, TrialRecord

LOSS = "eval/common_loss"
EARLIER_TRIALS = 12
"""Trials of earlier sweeps that the spread of a sweep without seeds comes from: 4 configurations, 3 seeds."""


@dataclass(frozen=True)
class Kind:
    """One kind of sweep."""

    name: str
    configurations: int
    seeds: int
    """Of each configuration; 1: the spread of earlier sweeps is known."""
    uneven: float = 0.0
    """Standard deviation of the logarithm of the configurations' noise."""
    equal: int = 1
    """Configurations that are equally the best."""
    top: int = 0
    """Only so many leaders get more than one seed; 0: all."""


KINDS = (
    Kind("4 x 3 seeds", 4, 3),
    Kind("8 x 3 seeds", 8, 3),
    Kind("8 x 2 seeds", 8, 2),
    Kind("8 x 3 seeds, uneven noise", 8, 3, uneven=0.5),
    Kind("20, top 5 x 3 seeds", 20, 3, top=5),
    Kind("20, top 5 x 3 seeds, uneven noise", 20, 3, uneven=0.5, top=5),
    Kind("8 x 1, earlier sweeps", 8, 1),
    Kind("20 x 1, earlier sweeps", 20, 1),
    Kind("2 equal of 2 x 3 seeds", 2, 3, equal=2),
    Kind("2 equal of 8 x 3 seeds", 8, 3, equal=2),
    Kind("2 equal of 8 x 3 seeds, uneven noise", 8, 3, uneven=0.5, equal=2),
    Kind("3 equal of 8 x 3 seeds", 8, 3, equal=3),
    Kind("2 equal of 20 x 1, earlier sweeps", 20, 1, equal=2),
)


def simulate(kind: Kind, rng: random.Random) -> tuple[SweepView, set[float]]:
    """A sweep, and the learning rates of its best configurations."""
    rates = sorted(10 ** rng.uniform(-6.5, -4.2) for _ in range(kind.configurations))
    optimum, scale = rng.uniform(-6, -4.6), 10 ** rng.uniform(-2.5, -1)
    losses = {rate: 0.4 + scale * (math.log10(rate) - optimum) ** 2 for rate in rates}
    best_first = sorted(rates, key=losses.__getitem__)
    for rate in best_first[: kind.equal]:
        losses[rate] = losses[best_first[0]]
    noise = scale * 10 ** rng.uniform(-2.5, 0)
    noises = {rate: noise * math.exp(rng.gauss(0, kind.uneven)) for rate in rates}
    values = {rate: [rng.gauss(losses[rate], noises[rate])] for rate in rates}
    leaders = sorted(rates, key=lambda rate: values[rate][0])[: kind.top or None]
    for rate in leaders:
        values[rate] += [rng.gauss(losses[rate], noises[rate]) for _ in range(kind.seeds - 1)]
    spread = {}
    if kind.seeds == 1:
        degrees = EARLIER_TRIALS - EARLIER_TRIALS // 3
        square = sum(rng.gauss(0, noise) ** 2 for _ in range(degrees)) / degrees
        spread = {DEVIATION: math.sqrt(square), DEGREES: float(degrees)}
    trials = tuple(_trials(values, spread))
    return _view(rates, trials), set(best_first[: kind.equal])


def _trials(values: dict[float, list[float]], spread: dict[str, float]) -> Iterator[TrialRecord]:
    for number, (rate, losses) in enumerate(values.items()):
        for seed, loss in enumerate(losses):
            config = {"learning_rate": rate, "seed": seed}
            yield TrialRecord(f"{number}-{seed}", "", "finished", config, {LOSS: loss, **spread}, 60.0)


def _view(rates: list[float], trials: tuple[TrialRecord, ...]) -> SweepView:
    space, _ = parse_space({"learning_rate": {"values": rates}, "seed": {"values": [0, 1, 2]}})
    assert space is not None
    ref = SweepRef("me", "kto", "s")
    return SweepView(ref, "", "s", "FINISHED", "grid", LOSS, "minimize", space, None, trials)


def measure(kind: Kind, sweeps: int) -> dict[str, object]:
    """How often the verdict is clear, and how often a clear one is right."""
    rng, counts = random.Random(kind.name), Counter[str]()
    for _ in range(sweeps):
        view, best = simulate(kind, rng)
        (verdict,) = make_verdicts(rank(view, LOSS, "minimize").configurations, is_own_metric=True)
        counts[verdict.certainty] += 1
        right = kind.equal == 1 and verdict.winner.settings["learning_rate"] in best
        counts[f"{verdict.certainty} right"] += right
    clear = counts["clear"]
    return {
        "kind": kind.name,
        "sweeps": sweeps,
        "clear": clear / sweeps,
        "clear_right": counts["clear right"] / clear if clear and kind.equal == 1 else None,
        "winner_right": (counts["clear right"] + counts["tie right"]) / sweeps if kind.equal == 1 else None,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=300, help="sweeps of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    rows = [measure(kind, options.sweeps) for kind in KINDS]
    print("| sweep | clear | of these right | winner right, clear or not |\n|---|---|---|---|")
    for row in rows:
        shares = [row["clear"], row["clear_right"], row["winner_right"]]
        cells = ["-" if share is None else f"{share:.1%}" for share in shares]
        print(f"| {row['kind']} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
