"""JSON for the dashboard: sweeps, runs, and the runs that changed since a page's last request."""

import hashlib
import json
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kto_sweep.alerts import SUMMARY, alerts_for_summary, alerts_of
from kto_sweep.search.distributions import Continuous
from kto_sweep.search.space import Space, searched_names
from kto_sweep.server import run_writes
from kto_sweep.server.errors import NotFoundError
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.states import ACTIVE, ENDED
from kto_sweep.server.store import lines, projects, runs, sweeps
from kto_sweep.server.store.filters import Where, compile_order
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules, read_rules
from kto_sweep.sweep.sweep_state import SweepStatus
from kto_sweep.sweep.view import HEARTBEAT_SECONDS, MAX_RUN_SECONDS, TrialRecord
from kto_sweep.text import is_number
from kto_sweep.trial import trial_config

MAX_LISTED = 500
"""Maximum sweeps, and maximum runs without a sweep, in a list."""
MAX_TEXT = 300
"""Maximum characters of a table cell; the run page shows the full value."""
MAX_ENTRIES = 500
"""Maximum entries of a configuration or summary in a table."""
MAX_ROWS = 500
"""Runs of a sweep that a page gets at first, about 1.4 kB each; it asks for others by page."""
RUNNING = "running"
MAX_CACHED = 64
"""Sweep states kept for comparison with a page's tag."""

Row = dict[str, Any]


def find_project(connection: sqlite3.Connection, names: Mapping[str, str]) -> Project:
    """The project of a URL path. Raises NotFoundError."""
    project = projects.find(connection, names["entity"], names["project"])
    if project is None:
        raise NotFoundError(f"there is no project {names['entity']}/{names['project']}")
    return project


def find_sweep(connection: sqlite3.Connection, names: Mapping[str, str]) -> tuple[Project, Sweep]:
    """The sweep of a URL path. Raises NotFoundError."""
    owner = find_project(connection, names)
    sweep = sweeps.find(connection, owner.id, names["sweep"])
    if sweep is None:
        raise NotFoundError(f"there is no sweep {names['sweep']}")
    return owner, sweep


def find_run(connection: sqlite3.Connection, names: Mapping[str, str]) -> tuple[Project, Run]:
    """The run of a URL path. Raises NotFoundError."""
    owner = find_project(connection, names)
    run = runs.find(connection, owner.id, names["run"])
    if run is None:
        raise NotFoundError(f"there is no run {names['run']}")
    return owner, run


def sweep_list(
    connection: sqlite3.Connection,
    owner: Project | None,
    status_of: Callable[[Sweep], SweepStatus],
    overview_of: Callable[[SweepStatus], Row],
) -> Row:
    """The sweeps of all projects, or of one project with its runs without a sweep."""
    listed = [
        (sweep, status_of(sweep))
        for sweep in sweeps.page(connection, owner.id if owner else None, MAX_LISTED)
    ]
    answer: Row = {
        "sweeps": [_sweep_row(connection, sweep, status, overview_of(status)) for sweep, status in listed],
        "projects": [
            {"entity": project.entity, "name": project.name}
            for project in projects.page(connection, None, MAX_LISTED, 0)
        ],
    }
    if owner is not None:
        where = Where("run.project_id = ? AND run.sweep_id IS NULL", (owner.id,))
        newest = runs.page(connection, where, compile_order("-created_at"), MAX_LISTED)
        answer["runs"] = [run_row(run) for run in newest]
    return answer


def _sweep_row(connection: sqlite3.Connection, sweep: Sweep, status: SweepStatus, overview: Row) -> Row:
    owner = projects.get(connection, sweep.project_id)
    return {
        "entity": owner.entity,
        "project": owner.name,
        **_sweep_fields(sweep, read_rules(sweep.config)),
        "shown_state": status.state,
        "counts": status.grid.counts,
        **overview,
    }


def title(sweep: Sweep) -> str:
    """The sweep's display name, else the name in its YAML, else its id."""
    return sweep.display_name or read_rules(sweep.config).name or sweep.name


def _sweep_fields(sweep: Sweep, rules: SweepRules) -> Row:
    metric = rules.metric
    return {
        "name": sweep.name,
        "title": title(sweep),
        "state": sweep.state.value.lower(),
        "method": rules.method,
        "metric": {
            "name": metric.name,
            "goal": "maximize" if metric.maximize else "minimize",
            "target": metric.target,
        }
        if metric
        else None,
        "expected": rules.expected_trials(),
        "created": sweep.created_at,
    }


def sweep_facts(
    connection: sqlite3.Connection, server: ServerState, sweep: Sweep, status: SweepStatus, overview: Row
) -> Row:
    """A sweep without its runs."""
    rules = read_rules(sweep.config)
    return {
        **_sweep_fields(sweep, rules),
        **status.facts(),
        **overview,
        "cell_counts": status.grid.counts,
        "description": sweep.description,
        "yaml": sweep.config,
        "problems": rules.problems,
        "parameters": _searched(rules.space) if rules.space else [],
        "agents": [
            {
                "name": agent.name,
                "host": agent.host,
                "created": agent.created_at,
                "heartbeat": agent.heartbeat_at,
                "alive": server.clock.seconds_since(agent.heartbeat_at) < HEARTBEAT_SECONDS,
                "runs": [run.name for run in runs.of_agent(connection, agent.id, ACTIVE)],
            }
            for agent in sweeps.agents(connection, sweep.id)
        ],
    }


def _searched(space: Space) -> list[Row]:
    on_log_scale = {parameter.name for parameter in space.searched if _is_log(parameter.distribution)}
    return [{"name": name, "log": name in on_log_scale} for name in searched_names(space)]


def _is_log(distribution: object) -> bool:
    return isinstance(distribution, Continuous) and distribution.log


def run_row(run: Run) -> Row:
    """A run as a table row: numbers and short strings under dotted names."""
    summary = lines.as_row(run.summary) or {}
    trial = TrialRecord(run.name, run.display_name, run.state.value, {}, summary, None)
    shown = flat({key: value for key, value in summary.items() if not key.startswith("_") and key != SUMMARY})
    if run.objective is not None and run.objective_value is not None:
        # define_metric can make the metric an object in the summary.
        shown[run.objective] = run.objective_value
    return {
        "name": run.name,
        "title": run.display_name,
        "state": "paused" if run.is_paused else run.state.value,
        "stopping": run.stop_requested and run.state not in ENDED,
        "created": run.created_at,
        "heartbeat": run.heartbeat_at,
        "seconds": _seconds(run, summary),
        "tags": list(run.tags),
        "notes": run.notes or "",
        "host": run.host or "",
        "exitcode": run.exitcode,
        "failure": trial.failure,
        "message": trial.failure_message,
        "config": flat(trial_config(run_writes.config_of(run.config))),
        "summary": shown,
        "alerts": alerts_for_summary(alerts_of(summary)),
    }


def _seconds(run: Run, summary: Mapping[str, Any]) -> float:
    """Seconds that the run took: its logged runtime, else by its heartbeats."""
    runtime = summary.get("_runtime")
    if is_number(runtime) and 0 <= runtime <= MAX_RUN_SECONDS:
        return float(runtime)
    return max(0.0, run.heartbeat_at - (run.assigned_at or run.created_at))


def flat(values: Mapping[str, Any], *, longest: int = MAX_TEXT) -> Row:
    """The values under dotted names; lists as JSON, NaN and Infinity as strings, long strings cut."""
    cells: Row = {}
    waiting = [(str(key), value) for key, value in reversed(list(values.items()))]
    while waiting and len(cells) < MAX_ENTRIES:
        name, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{name}.{key}", item) for key, item in reversed(list(value.items()))]
        else:
            cells[name] = _cell(value, longest)
    return cells


def _cell(value: Any, longest: int) -> str | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        # A table shows six digits; integers that JavaScript cannot represent become strings.
        if isinstance(value, int):
            return value if abs(value) < 2**53 else str(value)
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


class ChangeTracker:
    """Finds the runs of a sweep that changed since a page's last request.

    Each state of a sweep has a tag. What a page with this tag has is remembered for recent states, so that it
    gets only the changed runs; a page with an older tag gets all that it shows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: OrderedDict[str, dict[str, bytes]] = OrderedDict()

    def since(
        self,
        connection: sqlite3.Connection,
        sweep: Sweep,
        facts: Row,
        places: Mapping[str, Row],
        tag: str | None,
    ) -> Row | None:
        """The changed ones of the first runs, and the `order` of these; None when nothing changed.

        `places` has the place of each run in the sweep, in their order. Of more than MAX_ROWS runs the first
        are sent, then others that run; `total` is the number of all, `first` that of the first ones.
        """
        names = list(places)
        shown = (
            names[:MAX_ROWS]
            + [name for name in names[MAX_ROWS:] if places[name]["state"] == RUNNING][:MAX_ROWS]
        )
        changes = runs.changes(connection, sweep.project_id, shown)
        # A run whose place has changed must be sent, though its own record has not.
        fingerprints = {name: _fingerprint(changes[name], places[name]) for name in shown if name in changes}
        # Heartbeats change all the time: leave them out, so that they do not make a new state.
        hashed = {**facts, "agents": [{**agent, "heartbeat": 0} for agent in facts["agents"]]}
        parts = json.dumps([sweep.id, len(names), hashed]).encode() + b"".join(fingerprints.values())
        new_tag = hashlib.blake2b(parts, digest_size=12).hexdigest()
        with self._lock:
            before = self._states.get(tag) if tag else None
            self._states[new_tag] = fingerprints
            self._states.move_to_end(new_tag)
            while len(self._states) > MAX_CACHED:
                self._states.popitem(last=False)
        if new_tag == tag and before is not None:
            return None
        if before is not None and before.keys() - fingerprints.keys():
            before = None  # a run was deleted, or is no longer among the first: send all
        changed = [
            name for name, value in fingerprints.items() if before is None or before.get(name) != value
        ]
        return {
            "tag": new_tag,
            "complete": before is None,
            "sweep": facts,
            "total": len(names),
            "first": len(names[:MAX_ROWS]),
            "order": list(fingerprints),
            "runs": placed_rows(connection, sweep, changed, places),
        }


def placed_rows(
    connection: sqlite3.Connection, sweep: Sweep, names: Iterable[str], places: Mapping[str, Row]
) -> list[Row]:
    """The table rows of these runs, with their places."""
    found = (runs.find(connection, sweep.project_id, name) for name in names)
    return [{**run_row(run), **places.get(run.name, {})} for run in found if run is not None]


def _fingerprint(change: int, place: Row) -> bytes:
    text = repr((change, tuple(place.values())))
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
