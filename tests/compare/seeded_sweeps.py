"""Twenty sweeps of every kind that a comparison must describe, on a real server."""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from seeds import SeededServer

PROJECT = "faces"
LOSS = "eval/common_loss"
RATES = [1e-6, 1e-5, 1e-4]
GRID = {"learning_rate": {"values": RATES}, "beta": {"values": [0.05, 0.1]}}
SEEDS = {"learning_rate": {"values": RATES}, "seed": {"values": [1, 2, 3]}}
DATASETS = {"dataset": {"values": ["a.jsonl", "b.jsonl"]}, "beta": {"values": [0.1, 0.2]}}
RANGES = {
    "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-4},
    "beta": {"distribution": "uniform", "min": 0.05, "max": 0.5},
}


@dataclass(frozen=True)
class SeededRun:
    """One run as the SDK would leave it."""

    config: dict[str, Any]
    summary: dict[str, Any]
    state: str = "finished"
    name: str = ""


@dataclass(frozen=True)
class SweepCase:
    """A sweep's configuration and its runs."""

    title: str
    parameters: dict[str, Any]
    runs: list[SeededRun]
    more: dict[str, Any] = field(default_factory=dict)
    """Other keys of the sweep's YAML."""


def ran(
    config: dict[str, Any], loss: Any, *, state: str = "finished", name: str = "", **more: Any
) -> SeededRun:
    summary = {LOSS: loss, "_step": 199, "trial/steps": 200, "trial/seconds": 60.0, **more}
    return SeededRun(config, {key: value for key, value in summary.items() if value is not None}, state, name)


def each(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells of a grid of two parameters."""
    (one, first), (two, second) = parameters.items()
    for a in first["values"]:
        for b in second["values"]:
            yield {one: a, two: b}


def surface(config: dict[str, Any]) -> float:
    """A loss with an optimum at learning_rate 1e-5 and small beta."""
    return 0.4 + 0.05 * abs(math.log10(config["learning_rate"]) + 5) + 0.1 * config.get("beta", 0.0)


def _grid(rng: random.Random) -> list[SeededRun]:
    return [ran(config, surface(config) + rng.gauss(0, 0.001)) for config in each(GRID)]


def _seeds(rng: random.Random, noise: float) -> list[SeededRun]:
    return [ran(config, surface(config) + rng.gauss(0, noise)) for config in each(SEEDS)]


def _ranges(rng: random.Random, count: int) -> list[SeededRun]:
    configs = [
        {"learning_rate": 10 ** rng.uniform(-6, -4), "beta": rng.uniform(0.05, 0.5)} for _ in range(count)
    ]
    return [ran(config, surface(config) + rng.gauss(0, 0.002)) for config in configs]


def _with_failures(rng: random.Random) -> list[SeededRun]:
    runs = _grid(rng)
    cause = {"failure/cause": "diverged", "failure/message": "step 4: the loss is nan"}
    runs[0] = ran(runs[0].config, 0.001, state="failed", **cause)
    runs[1] = ran(runs[1].config, 0.002, state="crashed")
    runs[2] = ran(runs[2].config, 0.003, **{"trial/health": "unstable", "trial/health_message": "9 of 11"})
    return runs


def _with_outlier(rng: random.Random) -> list[SeededRun]:
    runs = _ranges(rng, 20)
    runs[7] = ran(runs[7].config, 4e7)
    return runs


def _two_sets(rng: random.Random) -> list[SeededRun]:
    common = {"model_size": "tiny"}
    return [
        ran({**common, **config}, rng.random(), **{"trial/eval_data": config["dataset"] * 4})
        for config in each(DATASETS)
    ]


def _running(rng: random.Random) -> list[SeededRun]:
    runs = _grid(rng)
    runs[3] = ran(runs[3].config, 0.01, state="running", _step=58)
    runs[4] = ran(runs[4].config, None, state="running", _step=3)
    return runs


def _preempted(rng: random.Random) -> list[SeededRun]:
    runs = _grid(rng)
    runs[0] = ran(runs[0].config, 0.01, state="preempted", _step=20, **{"failure/cause": "preempted"})
    return runs


def _stopped(rng: random.Random) -> list[SeededRun]:
    return [*_grid(rng)[:3], ran({"learning_rate": 1e-4, "beta": 0.1}, 0.01, state="killed", _step=90)]


def _infinite(rng: random.Random) -> list[SeededRun]:
    runs = _grid(rng)
    for at, value in enumerate(("Infinity", "NaN", "-Infinity")):
        runs[at] = ran(runs[at].config, value)
    return runs


def _pareto(rng: random.Random) -> list[SeededRun]:
    return [ran(run.config, run.summary[LOSS], **{"eval/auc": rng.random()}) for run in _grid(rng)]


def _hostile(rng: random.Random) -> list[SeededRun]:
    names = ["<b>x</b>", "\x1b[2Jgone", "שלום", "a $x$ b", "%{y}", "[red]r[/red]"]
    return [
        ran(run.config, run.summary[LOSS], name=name) for run, name in zip(_grid(rng), names, strict=True)
    ]


def _earlier_noise(rng: random.Random) -> list[SeededRun]:
    spread = {"seed_spread/deviation": 0.001, "seed_spread/degrees_of_freedom": 9}
    return [ran(run.config, run.summary[LOSS], **spread) for run in _grid(rng)]


def _objects(rng: random.Random) -> list[SeededRun]:
    """`define_metric` makes the metric an object in the summary."""
    return [ran(run.config, {"min": run.summary[LOSS], "max": 9.0}) for run in _grid(rng)]


def _equal(rng: random.Random) -> list[SeededRun]:
    return [ran(config, 0.5) for config in each(SEEDS)]


Runs = Callable[[random.Random], list[SeededRun]]
_CASES: dict[str, tuple[dict[str, Any], Runs, dict[str, Any]]] = {
    "grid": (GRID, _grid, {}),
    "clear": (SEEDS, lambda rng: _seeds(rng, 0.001), {}),
    "tie": (SEEDS, lambda rng: _seeds(rng, 0.2), {}),
    "equal": (SEEDS, _equal, {}),
    "failures": (GRID, _with_failures, {}),
    "outlier": (RANGES, _with_outlier, {"method": "random", "run_cap": 20}),
    "two-sets": (DATASETS, _two_sets, {}),
    "one": (GRID, lambda rng: _grid(rng)[:1], {}),
    "none": (GRID, lambda _: [], {}),
    "running": (GRID, _running, {}),
    "all-running": (GRID, lambda rng: [ran(r.config, 0.4, state="running", _step=1) for r in _grid(rng)], {}),
    "preempted": (GRID, _preempted, {}),
    "infinite": (GRID, _infinite, {}),
    "pareto": (
        GRID,
        _pareto,
        {"kto_sweep": {"objectives": [{"name": LOSS}, {"name": "eval/auc", "goal": "maximize"}]}},
    ),
    "maximize": (GRID, _pareto, {"metric": {"name": "eval/auc", "goal": "maximize"}}),
    "hostile": (GRID, _hostile, {}),
    "earlier-noise": (GRID, _earlier_noise, {}),
    "objects": (GRID, _objects, {}),
    "stopped": (GRID, _stopped, {}),
    "important": (RANGES, lambda rng: _ranges(rng, 50), {"method": "random", "run_cap": 50}),
}  # fmt: skip


def cases() -> dict[str, SweepCase]:
    """The sweeps by name."""
    return {
        name: SweepCase(name, parameters, make(random.Random(name)), more)
        for name, (parameters, make, more) in _CASES.items()
    }


def seed(server: SeededServer, case: SweepCase) -> str:
    """Registers the sweep and its runs; the sweep's id."""
    sweep = server.register(PROJECT, name=case.title, parameters=case.parameters, **case.more)
    for number, run in enumerate(case.runs):
        server.upsert(
            PROJECT,
            f"{case.title}-{number:02}",
            displayName=run.name or f"{case.title}-{number}",
            host="box",
            sweep=sweep,
            state=run.state,
            config=json.dumps({key: {"value": value} for key, value in run.config.items()}),
            summaryMetrics=json.dumps(run.summary),
        )
    return sweep
