"""Parameter importance of a sweep, recomputed only when runs have ended."""

import sqlite3
import threading
from dataclasses import asdict

from kto_sweep.compare.comparison import group_importance, importance_run
from kto_sweep.compare.seed_groups import SEED
from kto_sweep.metrics import summary_value
from kto_sweep.server import run_writes
from kto_sweep.server.dashboard_data import Row, flat
from kto_sweep.server.dashboard_rankings import group_runs
from kto_sweep.server.states import ENDED, RunState
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import read_rules

MAX_RUNS = 2000
"""Only the newest runs are used."""
MAX_CACHED = 64


class ImportanceCache:
    """Cache of the latest result per sweep. Thread-safe; computes one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: dict[tuple[int, str, int], Row] = {}

    def of(self, connection: sqlite3.Connection, sweep: Sweep) -> Row:
        """`rows` and `note` for the sweep's metric, from ended runs; excludes the seed."""
        rules = read_rules(sweep.config)
        own = runs.of_sweep(connection, sweep.id, sorted(ENDED))[-MAX_RUNS:]
        ended = [*runs.prior_runs(connection, sweep.id), *own]
        if rules.metric is None:
            return {"rows": [], "note": "The sweep has no metric."}
        key = (sweep.id, sweep.config, len(ended))
        with self._lock:
            if key not in self._results:
                configs = [flat(run_writes.plain_config(run.config)) for run in ended]
                summaries = [lines.as_row(run.summary) or {} for run in ended]
                names = (
                    [parameter.name for parameter in rules.space.searched]
                    if rules.space is not None
                    else sorted({name for config in configs for name in config})
                )
                importance_runs = [
                    importance_run(
                        config,
                        summary_value(summary, rules.metric.name, maximize=rules.metric.maximize),
                        run.state,
                        # A trial that finished at a second attempt still has the cause of the first.
                        str(
                            summary.get("trial/health" if run.state == RunState.FINISHED else "failure/cause")
                        ),
                    )
                    for run, config, summary in zip(ended, configs, summaries, strict=True)
                ]
                while len(self._results) >= MAX_CACHED:
                    self._results.pop(next(iter(self._results)))
                searched = [name for name in names if name.split(".")[-1] != SEED]
                groups = group_runs(ended, rules.metric.name)
                table = group_importance(searched, importance_runs, groups, maximize=rules.metric.maximize)
                self._results[key] = asdict(table)
            return self._results[key]
