"""How good the Bayesian search is: the best of 10, 20 and 40 trials, against W&B's own engine and chance.

    python benchmarks/search.py
    python benchmarks/search.py --seeds 5 --minutes 2        # a short one

W&B's engine is the package `sweeps` (0.3.0). It is asked when it can be imported; otherwise what it reached
on 2026-11-28, with 20 seeds, is printed. It works under numpy 2 though its metadata says otherwise:
install it and what it needs with `pip install --no-deps --target FOLDER`, and set PYTHONPATH=FOLDER.
"""

import argparse
import math
import multiprocessing
import os
import random
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kto_sweep.search import bayes
from kto_sweep.search.bayes import Observation
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space

MARKS = (10, 20, 40)
"""Finished trials after which the best value is noted."""
NOISE = 0.0005
"""Standard deviation between seeds of the same KTO trial, about what evaluations on few examples show."""
RECORDED = {
    ("KTO-like", 1): "0.08897 / 0.08528 / 0.08485",
    ("KTO-like", 4): "0.09273 / 0.08732 / 0.08506",
    ("Branin", 1): "0.9693 / 0.2807 / 0.01244",
    ("Branin", 4): "1.311 / 0.4605 / 0.01469",
}
"""What W&B's engine reached here, by surface and agents."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Surface:
    """A function to minimise."""

    parameters: Config
    value: Callable[[Config], float]
    noise: float = 0.0
    """Standard deviation of what the search is told; the table shows the values without it."""

    @property
    def space(self) -> Space:
        space, _ = parse_space(self.parameters)
        assert space is not None
        return space


def _branin(config: Config) -> float:
    """The Branin function less its minimum: three basins in two dimensions."""
    x, y = config["x"], config["y"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.397887


def _kto(config: Config) -> float:
    """An evaluation loss as KTO sweeps show it: a bowl in log learning rate that ends in a cliff.

    The best rate rises with the batch and with beta and falls with the rank. Less than a factor of ten above
    it training diverges; there the loss says nothing but that.
    """
    rate, beta = math.log10(config["learning_rate"]), math.log10(config["beta"]) + 1
    batch, rank = math.log2(config["batch_size"]) - 4, math.log2(config["lora_r"]) - 4
    off = rate - (-4.6 + 0.15 * batch - 0.1 * rank + 0.3 * beta)
    if off > 0.75:
        return 0.7
    return 0.08 + 0.05 * off**2 + 0.02 * beta**2 + 0.003 * batch**2 + 0.003 * (rank - 1) ** 2


SURFACES = {
    "KTO-like": Surface(
        {
            "learning_rate": {"distribution": "log_uniform_values", "min": 5e-7, "max": 1e-3},
            "beta": {"distribution": "log_uniform_values", "min": 0.01, "max": 0.5},
            "batch_size": {"values": [8, 16, 32, 64]},
            "lora_r": {"values": [8, 16, 32, 64]},
        },
        _kto,
        NOISE,
    ),
    "Branin": Surface({"x": {"min": -5.0, "max": 10.0}, "y": {"min": 0.0, "max": 15.0}}, _branin),
}


# Engines: the next configuration, from the surface, all trials so far, and a seed


def _ours(surface: Surface, trials: list[Observation], seed: int) -> Config:
    return bayes.next_config(surface.space, trials, seed=seed)


def _chance(surface: Surface, trials: list[Observation], seed: int) -> Config:
    return surface.space.sample(random.Random(f"{seed} {len(trials)}"))


def _wandb(surface: Surface, trials: list[Observation], seed: int) -> Config:
    import numpy as np

    sweeps: Any = import_module("sweeps")  # W&B's engine, not the folder of this project
    np.random.seed(1000 * seed + len(trials))  # its engine draws from the global generators
    random.seed(1000 * seed + len(trials))
    runs = [
        sweeps.SweepRun(
            name=str(number),
            state="running" if trial.value is None else "finished",
            config={name: {"value": value} for name, value in trial.config.items()},
            history=[] if trial.value is None else [{"loss": trial.value}],
        )
        for number, trial in enumerate(trials)
    ]
    metric = {"name": "loss", "goal": "minimize"}
    config = {"method": "bayes", "metric": metric, "parameters": surface.parameters}
    chosen = sweeps.next_run(config, runs, validate=False).config
    # numpy's numbers as Python's own, as they come back from JSON.
    return {name: np.asarray(entry["value"]).item() for name, entry in chosen.items()}


ENGINES = {"kto-sweep": _ours, "W&B's engine": _wandb, "random": _chance}


@dataclass(frozen=True)
class Case:
    """One sweep to simulate."""

    surface: str
    agents: int
    engine: str
    seed: int


def run_sweep(case: Case) -> tuple[list[float], float]:
    """The best value at each mark, and the seconds that a suggestion took on average.

    Agents finish in random order, and each asks for its next trial at once.
    """
    warnings.simplefilter("ignore")
    surface, ask = SURFACES[case.surface], ENGINES[case.engine]
    rng = random.Random(case.seed)
    trials: list[Observation] = []
    under_way: list[int] = []
    found: list[float] = []
    seconds = 0.0
    while len(found) < MARKS[-1]:
        while len(under_way) < case.agents:
            begun = time.perf_counter()
            config = dict(ask(surface, trials, case.seed))
            seconds += time.perf_counter() - begun
            under_way.append(len(trials))
            trials.append(Observation(config, None, pending=True))
        number = under_way.pop(rng.randrange(len(under_way)))
        value = surface.value(dict(trials[number].config))
        trials[number] = Observation(trials[number].config, value + rng.gauss(0, surface.noise))
        found.append(value)
    return [min(found[:mark]) for mark in MARKS], seconds / len(trials)


def _wandb_is_there() -> bool:
    try:
        return callable(getattr(import_module("sweeps"), "next_run", None))
    except ImportError:
        return False


def _rows(pool: ProcessPoolExecutor, engines: list[str], seeds: int, end: float) -> Iterator[str]:
    """The table's lines. Raises TimeoutError when not even one seed of each was done in time."""
    done: dict[tuple[str, int, str], list[tuple[list[float], float]]] = defaultdict(list)
    finished = 0
    for seed in range(seeds):
        cases = [Case(s, agents, engine, seed) for s in SURFACES for agents in (1, 4) for engine in engines]
        for case, result in zip(cases, pool.map(run_sweep, cases), strict=True):
            done[case.surface, case.agents, case.engine].append(result)
        finished = seed + 1
        if time.monotonic() > end:
            break
    yield f"{finished} seeds, medians of the best value after {', '.join(map(str, MARKS))} trials\n"
    yield "| surface | agents | engine | best value | s per suggestion |\n|---|---:|---|---|---:|"
    for (surface, agents, engine), results in done.items():
        values = _shown([statistics.median(best[i] for best, _ in results) for i in range(len(MARKS))])
        cost = statistics.mean(seconds for _, seconds in results)
        yield f"| {surface} | {agents} | {engine} | {values} | {cost:.3f} |"
    if "W&B's engine" not in engines:
        for (surface, agents), values in RECORDED.items():
            yield f"| {surface} | {agents} | W&B's engine, as recorded | {values} | |"


def _shown(values: list[float]) -> str:
    return " / ".join(f"{value:.4g}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="sweeps of each kind")
    parser.add_argument("--minutes", type=float, default=20, help="begin no further seed after this time")
    options = parser.parse_args()
    engines = [name for name in ENGINES if name != "W&B's engine" or _wandb_is_there()]
    os.environ["OMP_NUM_THREADS"] = "1"  # a process per core: further threads only get in each other's way
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    begun = time.monotonic()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the start")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for line in _rows(pool, engines, options.seeds, begun + 60 * options.minutes):
            print(line)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
