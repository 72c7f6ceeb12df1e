"""What the dashboard shows, as plain JSON: sweeps, runs and what has changed since somebody last looked."""

import hashlib
import json
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from kto_sweep.search.distributions import Continuous
from kto_sweep.server import run_writes
from kto_sweep.server.columns import MAX_RUN_SECONDS
from kto_sweep.server.errors import NotFoundError
from kto_sweep.server.resolvers.sweep import AGENT_OFFLINE_SECONDS
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ACTIVE, ENDED
from kto_sweep.server.store import lines, projects, runs, sweeps
from kto_sweep.server.store.filters import Where, compile_order
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules, read_rules
from kto_sweep.text import is_number

MAX_LISTED = 500
"""Sweeps, and runs of no sweep, in one list at most."""
MAX_TEXT = 300
"""Characters of a value in a table at most; the run's own page has all of it."""
MAX_ENTRIES = 500
"""Entries of one configuration or summary in a table at most."""
MAX_CACHED = 64
"""States of sweeps that pages may still refer to."""

Row = dict[str, Any]


def project(connection: sqlite3.Connection, names: Mapping[str, str]) -> Project:
    """The project of a path. Raises NotFoundError."""
    found = projects.find(connection, names["entity"], names["project"])
    if found is None:
        raise NotFoundError(f"there is no project {names['entity']}/{names['project']}")
    return found


def sweep(connection: sqlite3.Connection, names: Mapping[str, str]) -> tuple[Project, Sweep]:
    """The sweep of a path. Raises NotFoundError."""
    owner = project(connection, names)
    found = sweeps.find(connection, owner.id, names["sweep"])
    if found is None:
        raise NotFoundError(f"there is no sweep {names['sweep']}")
    return owner, found


def run(connection: sqlite3.Connection, names: Mapping[str, str]) -> tuple[Project, Run]:
    """The run of a path. Raises NotFoundError."""
    owner = project(connection, names)
    found = runs.find(connection, owner.id, names["run"])
    if found is None:
        raise NotFoundError(f"there is no run {names['run']}")
    return owner, found


def sweep_list(connection: sqlite3.Connection, owner: Project | None) -> Row:
    """The sweeps of one project, or of all; of one project also the runs that belong to no sweep."""
    listed = sweeps.page(connection, owner.id if owner else None, MAX_LISTED)
    told: Row = {
        "sweeps": [_sweep_line(connection, each) for each in listed],
        "projects": [
            {"entity": each.entity, "name": each.name}
            for each in projects.page(connection, None, MAX_LISTED, 0)
        ],
    }
    if owner is not None:
        where = Where("run.project_id = ? AND run.sweep_id IS NULL", (owner.id,))
        newest = runs.page(connection, where, compile_order("-created_at"), MAX_LISTED)
        told["runs"] = [run_row(each) for each in newest]
    return told


def _sweep_line(connection: sqlite3.Connection, each: Sweep) -> Row:
    owner, rules = projects.get(connection, each.project_id), read_rules(each.config)
    counts: dict[str, int] = {}
    seconds = 0.0
    mine = runs.in_sweep(each.id)
    for state, count, busy in connection.execute(
        "SELECT CASE WHEN paused AND state = 'preempted' THEN 'paused' ELSE state END AS shown, COUNT(*),"
        " SUM(CASE WHEN json_extract(COALESCE(strict_summary, summary), '$._runtime') BETWEEN 0 AND ?"
        " THEN json_extract(COALESCE(strict_summary, summary), '$._runtime')"
        " ELSE heartbeat_at - created_at END) FROM run"
        f" WHERE {mine.sql} GROUP BY shown",
        (MAX_RUN_SECONDS, *mine.parameters),
    ):
        counts[state] = count
        seconds += busy
    return {
        "entity": owner.entity,
        "project": owner.name,
        **_sweep_head(each, rules),
        "counts": counts,
        "seconds": seconds,
        "best": sweeps.best_objective(connection, each.id, rules.metric.name, maximize=rules.metric.maximize)
        if rules.metric
        else None,
    }


def title(each: Sweep) -> str:
    """What people call the sweep."""
    return each.display_name or read_rules(each.config).name or each.name


def _sweep_head(each: Sweep, rules: SweepRules) -> Row:
    metric = rules.metric
    return {
        "name": each.name,
        "title": title(each),
        "state": each.state.value.lower(),
        "method": rules.method,
        "metric": {
            "name": metric.name,
            "goal": "maximize" if metric.maximize else "minimize",
            "target": metric.target,
        }
        if metric
        else None,
        "expected": rules.expected_trials(),
        "created": each.created_at,
    }


def sweep_facts(connection: sqlite3.Connection, server: ServerState, each: Sweep) -> Row:
    """All of a sweep but its runs."""
    rules = read_rules(each.config)
    return {
        **_sweep_head(each, rules),
        "description": each.description,
        "yaml": each.config,
        "problems": rules.problems,
        "parameters": [
            {"name": parameter.name, "log": _is_log(parameter.distribution)}
            for parameter in (rules.space.searched if rules.space else ())
        ],
        "agents": [
            {
                "name": agent.name,
                "host": agent.host,
                "created": agent.created_at,
                "heartbeat": agent.heartbeat_at,
                "alive": server.clock.seconds_since(agent.heartbeat_at) < AGENT_OFFLINE_SECONDS,
                "runs": [held.name for held in runs.of_agent(connection, agent.id, ACTIVE)],
            }
            for agent in sweeps.agents(connection, each.id)
        ],
    }


def _is_log(distribution: object) -> bool:
    return isinstance(distribution, Continuous) and distribution.log


def run_row(each: Run) -> Row:
    """A run as a row of a table: numbers and short texts under dotted names."""
    summary = lines.as_row(each.summary) or {}
    shown = flat({key: value for key, value in summary.items() if not key.startswith("_")})
    if each.objective is not None and each.objective_value is not None:
        # The metric may be an object there, as define_metric can have it.
        shown[each.objective] = each.objective_value
    return {
        "name": each.name,
        "title": each.display_name,
        "state": "paused" if each.is_paused else each.state.value,
        "stopping": each.stop_requested and each.state not in ENDED,
        "created": each.created_at,
        "heartbeat": each.heartbeat_at,
        "seconds": _seconds(each, summary),
        "tags": list(each.tags),
        "notes": each.notes or "",
        "host": each.host or "",
        "exitcode": each.exitcode,
        "config": flat(run_writes.plain_config(each.config)),
        "summary": shown,
    }


def _seconds(each: Run, summary: Mapping[str, Any]) -> float:
    """Seconds that the run was at work, as far as it has told."""
    told = summary.get("_runtime")
    if is_number(told) and 0 <= told <= MAX_RUN_SECONDS:
        return float(told)
    return max(0.0, each.heartbeat_at - (each.assigned_at or each.created_at))


def flat(values: Mapping[str, Any], *, longest: int = MAX_TEXT) -> Row:
    """The values under dotted names; lists as JSON text, NaN and Infinity as text, long texts cut."""
    found: Row = {}
    waiting = [(str(key), value) for key, value in reversed(list(values.items()))]
    while waiting and len(found) < MAX_ENTRIES:
        name, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{name}.{key}", item) for key, item in reversed(list(value.items()))]
        else:
            found[name] = _cell(value, longest)
    return found


def _cell(value: Any, longest: int) -> str | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        # Six digits are what a table shows; whole numbers that JavaScript cannot hold become text.
        if isinstance(value, int):
            return value if abs(value) < 2**53 else str(value)
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


_RUN_COLUMNS = ", ".join(field.name for field in fields(Run) if field.name not in ("restart", "suggested"))


class ChangeTracker:
    """What of a sweep's runs has changed since a page last asked.

    A state is known by a tag; the fingerprint of every run is kept for the last few, so that a page gets the
    changed runs alone. A page with a tag from before that gets all of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: OrderedDict[str, dict[int, bytes]] = OrderedDict()

    def since(self, connection: sqlite3.Connection, sweep_id: int, facts: Row, tag: str | None) -> Row | None:
        """The changed runs, or all of them where `complete`; None when nothing has changed at all."""
        mine = runs.in_sweep(sweep_id)
        prints = {
            row[0]: _fingerprint(row)
            for row in connection.execute(
                f"SELECT {_RUN_COLUMNS} FROM run WHERE {mine.sql} ORDER BY id", mine.parameters
            )
        }
        with self._lock:
            before = self._states.get(tag) if tag else None
            if before is not None and before.keys() - prints.keys():
                before = None  # a run was deleted: rare, and easiest told by telling all
            # Agents breathe all the time; only who they are and what they do makes a new state.
            known = {**facts, "agents": [{**agent, "heartbeat": 0} for agent in facts["agents"]]}
            new_tag = hashlib.blake2b(
                json.dumps([sweep_id, known]).encode() + b"".join(prints.values()), digest_size=12
            ).hexdigest()
            if new_tag == tag and before is not None:
                return None
            self._states[new_tag] = prints
            self._states.move_to_end(new_tag)
            while len(self._states) > MAX_CACHED:
                self._states.popitem(last=False)
        changed = [row for row, print_ in prints.items() if before is None or before.get(row) != print_]
        return {
            "tag": new_tag,
            "complete": before is None,
            "sweep": facts,
            "runs": [run_row(each) for row in changed if (each := runs.get(connection, row)) is not None],
        }


def _fingerprint(row: Sequence[Any]) -> bytes:
    return hashlib.blake2b(repr(tuple(row)).encode(errors="replace"), digest_size=8).digest()
