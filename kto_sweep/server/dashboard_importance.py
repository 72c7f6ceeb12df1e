"""The importance of a sweep's parameters, worked out anew only when runs have ended."""

import sqlite3
import threading
from dataclasses import asdict

from kto_sweep.compare.importance import parameter_importance
from kto_sweep.compare.seed_groups import SEED
from kto_sweep.server import objective, run_writes
from kto_sweep.server.dashboard_data import Row, flat
from kto_sweep.server.states import ENDED
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import read_rules

MOST_RUNS = 2000
"""The newest so many runs are looked at."""
REMEMBERED = 64


class ImportanceCache:
    """The last answers, by sweep. May be asked from any thread; one works at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[int, str, int], Row] = {}

    def of(self, connection: sqlite3.Connection, sweep: Sweep) -> Row:
        """`rows` and `note` for the sweep's metric, from the runs that have ended; seeds aside."""
        rules = read_rules(sweep.config)
        own = runs.of_sweep(connection, sweep.id, sorted(ENDED))[-MOST_RUNS:]
        ended = [*runs.taken_over(connection, sweep.id), *own]
        if rules.metric is None:
            return {"rows": [], "note": "The sweep has no metric."}
        key = (sweep.id, sweep.config, len(ended))
        with self._lock:
            if key not in self._known:
                configs = [flat(run_writes.plain_config(run.config)) for run in ended]
                summaries = [lines.as_row(run.summary) or {} for run in ended]
                names = (
                    [parameter.name for parameter in rules.space.searched]
                    if rules.space is not None
                    else sorted({name for config in configs for name in config})
                )
                values = [objective.in_summary(summary, rules.metric) for summary in summaries]
                while len(self._known) >= REMEMBERED:
                    self._known.pop(next(iter(self._known)))
                searched = [name for name in names if name.split(".")[-1] != SEED]
                self._known[key] = asdict(parameter_importance(searched, configs, values))
            return self._known[key]
