"""Suggests the next trial of a sweep by its search method."""

import logging
import random
import sqlite3
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kto_sweep.search import bayes, grid, replicates
from kto_sweep.search.options import Options
from kto_sweep.search.space import SEED, Space
from kto_sweep.server import run_writes
from kto_sweep.server.observations import observations
from kto_sweep.server.store import runs, sweeps
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepMetric, SweepRules

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """The next trial."""

    config: dict[str, Any]
    cell_key: str | None
    """Key of its grid cell; None for other methods."""
    grid_cursor: int
    """Number of leading grid cells that have all been tried, this trial included."""
    is_last: bool
    """The search has no trial after it."""
    cell_keys: Mapping[int, str] = field(default_factory=dict)
    """Cell keys computed for runs that lacked one, by run row; stored because computing them is slow."""


def preload(rules: SweepRules) -> None:
    """Loads the libraries of the sweep's search in the background, before an agent needs them."""
    if rules.method == "bayes":
        _load_bayes()


@cache
def _load_bayes() -> None:
    threading.Thread(target=bayes.warm_up, name="load-bayes", daemon=True).start()


def suggest(
    connection: sqlite3.Connection, sweep: Sweep, rules: SweepRules, rng: random.Random
) -> Suggestion | None:
    """The next trial; None when the space or the cap is exhausted, or the sweep has no valid space."""
    if rules.space is None:
        return None
    chosen = runs.count_suggested(connection, sweep.id)
    if rules.run_cap is not None and chosen >= rules.run_cap:
        return None
    is_last = rules.run_cap is not None and chosen + 1 >= rules.run_cap
    if rules.method == "grid":
        return _next_cell(connection, sweep, rules.space, is_last)
    config, seeds = None, rules.options.seeds
    if seeds and (due := replicates.next_replicate(runs.suggestions(connection, sweep.id), seeds)):
        return Suggestion(due, None, 0, is_last)
    if rules.method == "bayes" and rules.metric is not None:
        config = _next_bayes(connection, sweep, rules.space, rules.metric, rules.options)
    config = config or rules.space.sample(rng)
    return Suggestion({**config, SEED: seeds[0]} if seeds else config, None, 0, is_last)


def _next_bayes(
    connection: sqlite3.Connection, sweep: Sweep, space: Space, metric: SweepMetric, options: Options
) -> dict[str, Any] | None:
    """The Bayesian search's choice, deterministic for a sweep's name and runs.

    None when the search fails: the trial is then drawn at random, which is better than a stalled sweep.
    """
    try:
        seen = observations(connection, sweep.id, metric, options.objectives[1:])
        if options.seeds:
            seen = replicates.pooled(seen, space)
        seed = zlib.crc32(sweep.name.encode())
        return bayes.next_config(space, seen, maximize=metric.maximize, seed=seed)
    except Exception:
        _log.exception("sweep %s: the Bayesian search failed; its next trial is drawn at random", sweep.name)
        return None


def _next_cell(
    connection: sqlite3.Connection, sweep: Sweep, space: Space, is_last: bool
) -> Suggestion | None:
    tried = _TriedCells(connection, sweep)
    new_keys = {}
    for run in runs.without_cell_key(connection, sweep.id):
        key = grid.cell_key(space, run.suggested or run_writes.config_of(run.config))
        tried.others.add(key)
        if run.suggested is not None:  # a run without `suggested` may still change its configuration
            new_keys[run.id] = key
    # Their own configurations have the defaults, which the sweeps that chose them may not name.
    tried.others.update(
        grid.cell_key(space, run_writes.config_of(run.config))
        for run in runs.prior_runs(connection, sweep.id)
    )
    cell = grid.next_cell(space, tried, sweep.grid_cursor)
    if cell is None:
        return None
    number, config, key = cell
    tried.others.add(key)
    after = grid.next_cell(space, tried, number + 1)
    return Suggestion(config, key, number + 1, is_last or after is None, new_keys)


class _TriedCells:
    """The keys of the cells that have a run; looked up one by one, as a large grid has very many."""

    def __init__(self, connection: sqlite3.Connection, sweep: Sweep) -> None:
        self._connection, self._sweep = connection, sweep
        self.others: set[str] = set()
        """Keys of runs that have none in the database."""

    def __contains__(self, key: object) -> bool:
        return key in self.others or sweeps.has_cell(self._connection, self._sweep.id, str(key))
