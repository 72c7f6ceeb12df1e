"""A sweep of this server as the plain data from which every face derives its states."""

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kto_sweep.search.space import Space
from kto_sweep.server import run_writes
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import projects, runs
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepMetric, read_rules
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.sweep_state import SweepStatus, read_sweep_status
from kto_sweep.sweep.view import DEVICE, OWNER, SweepView, TrialRecord

SUMMARY_KEYS = ("_step", "trial/steps", "trial/health", "failure/cause", "failure/message", "objective/best")
"""Of a run's summary, besides the sweep's metric, a view has these: parsing all of 1,000 runs takes long."""
CACHED_CONFIGS = 4096
MAX_CACHED = 64
"""Sweeps whose status is kept."""
MAX_AGE = 5.0
"""Seconds for which a status is used if no run changed; meanwhile a heartbeat may have become old."""


def sweep_view(connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> SweepView:
    """The sweep with its prior runs and its own, as `wandb_client.reader` reads it."""
    owner, rules = projects.get(connection, sweep.project_id), read_rules(sweep.config)
    metric = rules.metric
    return SweepView(
        ref=SweepRef(owner.entity, owner.name, sweep.name),
        url="",
        name=sweep.name,
        state=sweep.state.value,
        method=rules.method,
        metric=metric.name if metric else "",
        goal="maximize" if metric and metric.maximize else "minimize",
        space=rules.space or Space(()),
        expected=rules.expected_trials(),
        trials=tuple(_record(row, metric) for row in _rows(connection, sweep)),
        pauses_trials=rules.options.asha is not None,
        target=metric.target if metric else None,
        stops_trials=rules.options.asha is not None or rules.early_termination is not None,
        updated=sweep.updated_at,
        now=server.now(),
    )


def _rows(connection: sqlite3.Connection, sweep: Sweep) -> list[sqlite3.Row]:
    condition, paths = runs.in_sweep(sweep.id), ", ".join("?" * len(SUMMARY_KEYS))
    return connection.execute(
        "SELECT name, display_name, state, paused, created_at, heartbeat_at, config,"
        " objective, objective_value,"
        f" json_extract(COALESCE(strict_summary, summary), {paths}) AS summary, sweep_id IS NOT ? AS prior"
        f" FROM run WHERE {condition.sql} ORDER BY prior DESC, id",
        (*(f'$."{key}"' for key in SUMMARY_KEYS), sweep.id, *condition.parameters),
    ).fetchall()


def _record(row: sqlite3.Row, metric: SweepMetric | None) -> TrialRecord:
    config = _config(row["config"])
    values = zip(SUMMARY_KEYS, json.loads(row["summary"]), strict=True)
    summary = {key: value for key, value in values if value is not None}
    if metric is not None and row["objective"] == metric.name and row["objective_value"] is not None:
        summary[metric.name] = row["objective_value"]
    return TrialRecord(
        run_id=row["name"],
        name=row["display_name"],
        state=row["state"],
        config=config,
        summary=summary,
        seconds=None,
        created=row["created_at"],
        device=f"{config[OWNER]} {config[DEVICE]}" if {OWNER, DEVICE} <= config.keys() else "",
        is_prior_run=bool(row["prior"]),
        paused=bool(row["paused"]) and row["state"] == "preempted",
        heartbeat=row["heartbeat_at"],
    )


@lru_cache(maxsize=CACHED_CONFIGS)
def _config(text: str) -> Mapping[str, Any]:
    return run_writes.plain_config(text)


class StatusCache:
    """The status of recently shown sweeps; computing that of 1,000 runs takes a tenth of a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, tuple[object, SweepStatus]] = OrderedDict()

    def of(self, connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> SweepStatus:
        """The status of the sweep, at most MAX_AGE seconds old."""
        view = sweep_view(connection, server, sweep)
        # Steps and heartbeats change all the time, and seldom a state.
        key = (
            view.state,
            sweep.config,
            [
                (
                    trial.run_id,
                    trial.state,
                    trial.paused,
                    trial.step is None,
                    trial.failure,
                    trial.value(view.metric),
                )
                for trial in view.trials
            ],
        )
        with self._lock:
            cached = self._entries.get(sweep.id)
        if cached is not None and cached[0] == key and _age(cached[1], view) < MAX_AGE:
            return cached[1]
        status = read_sweep_status(view)
        with self._lock:
            self._entries[sweep.id] = key, status
            self._entries.move_to_end(sweep.id)
            while len(self._entries) > MAX_CACHED:
                self._entries.popitem(last=False)
        return status


def _age(status: SweepStatus, view: SweepView) -> float:
    return abs((view.now or 0.0) - (status.view.now or 0.0))
