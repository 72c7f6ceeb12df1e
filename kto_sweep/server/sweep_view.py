"""A sweep of this server as the plain data from which every face derives its ranking and states."""

import json
import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

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
from kto_sweep.sweep.view import DEVICE, OWNER, SweepView, TrialRecord, seconds_of

SUMMARY_KEYS = (
    *("_step", "_runtime", "trial/seconds", "trial/steps", "trial/health", "trial/health_message"),
    *("failure/cause", "failure/message", DATA, EVAL_DATA, MODEL, DEVIATION, DEGREES, *FIXED_COLUMNS),
)
"""Of a run's summary, besides the sweep's metrics, a view has these: parsing all of 1,000 runs takes long."""
CACHED_CONFIGS = 4096
"""Parsed configurations; that of a run seldom changes."""


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
    config = _config(row["config"])
    values = zip(_summary_keys(rules), json.loads(row["summary"]), strict=True)
    summary = {key: value for key, value in values if value is not None}
    if rules.metric is not None and row["objective"] == rules.metric.name:  # else its summary was not read
        summary[rules.metric.name] = row["objective_value"]
    return TrialRecord(
        run_id=row["name"],
        name=row["display_name"],
        state=row["state"],
        config={key: value for key, value in config.items() if not key.startswith("_")},
        summary=summary,
        seconds=seconds_of(summary, row["created_at"], row["heartbeat_at"]),
        created=row["created_at"],
        device=f"{config[OWNER]} {config[DEVICE]}" if {OWNER, DEVICE} <= config.keys() else "",
        is_prior_run=bool(row["prior"]),
        paused=bool(row["paused"]) and row["state"] == "preempted",
        heartbeat=row["heartbeat_at"],
    )


@lru_cache(maxsize=CACHED_CONFIGS)
def _config(text: str) -> Mapping[str, Any]:
    return run_writes.plain_config(text)
