"""A sweep of this server as the plain data from which every face derives its ranking and states."""

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.search.space import Space
from kto_sweep.server import sweep_trials
from kto_sweep.server.server_state import ServerState
from kto_sweep.server.store import projects, runs
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules, read_rules
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.sweep_state import SweepStatus, read_sweep_status
from kto_sweep.sweep.trial_rows import summary_keys, trial_record
from kto_sweep.sweep.view import OVER, UNFINISHED, SweepView, TrialRecord

MAX_RECORDS = 200_000
"""Trials kept in memory, about 1.5 kB each; those of the sweeps that were least recently shown go first."""
MAX_CACHED = 64
"""Sweeps whose status is kept."""
MAX_AGE = 5.0
"""Seconds for which a status is used if no run changed; meanwhile a heartbeat may have become old."""
SLOW, REST = 0.2, 10.0
"""A status that takes more seconds than SLOW to compute is used for REST times as long, whatever changed."""


def sweep_view(connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> SweepView:
    """The sweep with its prior runs and its own, as `wandb_client.reader` reads it."""
    rules = read_rules(sweep.config)
    keys = summary_keys(rules.metrics)
    rows = sweep_trials.rows(lambda: connection, sweep, rules, keys)
    return _view(connection, server, sweep, rules, (_record(row, keys, rules) for row in rows))


def _record(row: tuple[object, ...], keys: tuple[str, ...], rules: SweepRules) -> TrialRecord:
    metric = rules.metric.name if rules.metric else None
    return trial_record(sweep_trials.as_row(row), keys, metric)


def _view(
    connection: sqlite3.Connection,
    server: ServerState,
    sweep: Sweep,
    rules: SweepRules,
    trials: Iterable[TrialRecord],
) -> SweepView:
    owner, metric = projects.get(connection, sweep.project_id), rules.metric
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
        trials=tuple(trials),
        objectives=rules.options.objectives,
        pauses_trials=rules.options.asha is not None,
        target=metric.target if metric else None,
        stops_trials=rules.options.asha is not None or rules.early_termination is not None,
        updated=sweep.updated_at,
        now=server.now(),
    )


@dataclass
class _Records:
    """The trials of a sweep as they were at its last change."""

    config: str
    change: int = -1
    by_run: dict[str, TrialRecord] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class ViewCache:
    """The views of recently shown sweeps: reads only the runs that changed. Thread-safe.

    For committed data only: a change that is rolled back has the number of the next one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: OrderedDict[int, _Records] = OrderedDict()

    def of(self, connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> tuple[SweepView, int]:
        """The view, and the number of its last change."""
        rules = read_rules(sweep.config)
        with self._lock:
            records = self._records.get(sweep.id)
            if records is None or records.config != sweep.config:
                records = self._records[sweep.id] = _Records(sweep.config)
            self._records.move_to_end(sweep.id)
            while len(self._records) > 1 and self._count() > MAX_RECORDS:
                self._records.popitem(last=False)
        with records.lock:
            _refresh(connection, sweep, rules, records)
            trials = tuple(records.by_run.values())
            return _view(connection, server, sweep, rules, trials), records.change

    def _count(self) -> int:
        return sum(len(records.by_run) for records in self._records.values())


def _refresh(connection: sqlite3.Connection, sweep: Sweep, rules: SweepRules, records: _Records) -> None:
    keys = summary_keys(rules.metrics)
    latest, count = runs.last_change(connection, sweep.id)
    if records.change >= 0:
        for row in sweep_trials.rows(lambda: connection, sweep, rules, keys, records.change):
            trial = _record(row, keys, rules)
            records.by_run[trial.run_id] = trial
    if records.change < 0 or len(records.by_run) != count:  # a run was deleted, or added as a prior run
        rows = sweep_trials.rows(lambda: connection, sweep, rules, keys)
        trials = (_record(row, keys, rules) for row in rows)
        records.by_run = {trial.run_id: trial for trial in trials}
    records.change = latest


class StatusCache:
    """The status of recently shown sweeps; computing that of 1,000 runs takes a tenth of a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._views = ViewCache()

    def of(self, connection: sqlite3.Connection, server: ServerState, sweep: Sweep) -> SweepStatus:
        """The status of the sweep, computed again if a trial changed, and when a heartbeat may be old."""
        view, change = self._views.of(connection, server, sweep)
        key = (view.state, sweep.config, change)
        with self._lock:
            cached = self._entries.get(sweep.id)
        if cached is not None and cached.serves(key, view):
            return cached.status
        start = time.monotonic()
        status = read_sweep_status(view)
        end = time.monotonic()
        entry = _Entry(key, status, end, end - start)
        with self._lock:
            self._entries[sweep.id] = entry
            self._entries.move_to_end(sweep.id)
            while len(self._entries) > MAX_CACHED:
                self._entries.popitem(last=False)
        return entry.status


@dataclass(frozen=True)
class _Entry:
    """A status, when it was computed (monotonic seconds), and how many seconds that took."""

    key: tuple[str, str, int]
    status: SweepStatus
    at: float
    seconds: float

    def serves(self, key: tuple[str, str, int], view: SweepView) -> bool:
        """Whether the status is good enough for this view."""
        old = self.status.view
        if self.seconds > SLOW and time.monotonic() - self.at < REST * self.seconds:
            return key[:2] == self.key[:2]
        age = abs((view.now or 0.0) - (old.now or 0.0))
        over = old.state in OVER and not any(trial.state in UNFINISHED for trial in old.trials)
        return key == self.key and (over or age < MAX_AGE)
