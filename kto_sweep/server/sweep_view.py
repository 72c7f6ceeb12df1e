"""A sweep of this server as the plain data from which every face derives its ranking and states."""

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kto_sweep.alerts import SUMMARY as ALERTS
from kto_sweep.compare.comparison import FIXED_COLUMNS
from kto_sweep.compare.confidence import DEGREES, DEVIATION
from kto_sweep.fingerprints import DATA, EVAL_DATA, MODEL
from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.search.space import Space
from kto_sweep.server import run_writes
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import projects, runs
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules, read_rules
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.sweep_state import SweepStatus, read_sweep_status
from kto_sweep.sweep.view import BUSY, DEVICE, OWNER, SweepView, TrialRecord, busy_spans, seconds_of
from kto_sweep.trial import trial_config

SUMMARY_KEYS = (
    *("_step", "_runtime", BUSY, "trial/seconds", "trial/steps", "trial/health", "trial/health_message"),
    *("failure/cause", "failure/message", "objective/best", DATA, EVAL_DATA, MODEL, DEVIATION, DEGREES),
    ALERTS,
    *FIXED_COLUMNS,
)
"""Of a run's summary, besides the sweep's metrics, a view has these: parsing all of 1,000 runs takes long."""
CACHED_CONFIGS = 4096
"""Parsed configurations; that of a run seldom changes."""
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
        name=sweep.display_name or rules.name or sweep.name,
        state=sweep.state.value,
        method=rules.method,
        metric=metric.name if metric else DEFAULT_METRIC,
        goal="maximize" if metric and metric.maximize else "minimize",
        space=rules.space or Space(()),
        expected=rules.expected_trials(),
        trials=tuple(_record(row, rules) for row in _rows(connection, sweep, rules)),
        objectives=rules.options.objectives,
        pauses_trials=rules.options.asha is not None,
        target=metric.target if metric else None,
        stops_trials=rules.options.asha is not None or rules.early_termination is not None,
        updated=sweep.updated_at,
        now=server.now(),
    )


def _summary_keys(rules: SweepRules) -> list[str]:
    names = [objective.name for objective in rules.options.objectives]
    return [*SUMMARY_KEYS, *names, *([rules.metric.name] if rules.metric else [])]


def _rows(connection: sqlite3.Connection, sweep: Sweep, rules: SweepRules) -> list[sqlite3.Row]:
    keys, condition = _summary_keys(rules), runs.in_sweep(sweep.id)
    return connection.execute(
        "SELECT name, display_name, state, paused, created_at, heartbeat_at, config,"
        " objective, objective_value,"
        f" json_extract(COALESCE(strict_summary, summary), {', '.join('?' * len(keys))}) AS summary,"
        f" sweep_id IS NOT ? AS prior FROM run WHERE {condition.sql} ORDER BY prior DESC, id",
        (*(f'$."{key}"' for key in keys), sweep.id, *condition.parameters),
    ).fetchall()


def _record(row: sqlite3.Row, rules: SweepRules) -> TrialRecord:
    config, device = _config(row["config"])
    values = zip(_summary_keys(rules), json.loads(row["summary"]), strict=True)
    summary = {key: value for key, value in values if value is not None}
    if rules.metric is not None and row["objective"] == rules.metric.name:  # else its summary was not read
        summary[rules.metric.name] = row["objective_value"]
    return TrialRecord(
        run_id=row["name"],
        name=row["display_name"],
        state=row["state"],
        config=config,
        summary=summary,
        seconds=seconds_of(summary, row["created_at"], row["heartbeat_at"]),
        created=row["created_at"],
        device=device,
        is_prior_run=bool(row["prior"]),
        paused=bool(row["paused"]) and row["state"] == "preempted",
        heartbeat=row["heartbeat_at"],
        busy=busy_spans(summary),
    )


@lru_cache(maxsize=CACHED_CONFIGS)
def _config(text: str) -> tuple[Mapping[str, Any], str]:
    """A run's configuration, and its home and device."""
    config = run_writes.plain_config(text)
    device = f"{config[OWNER]} {config[DEVICE]}" if {OWNER, DEVICE} <= config.keys() else ""
    return trial_config(config), device


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
