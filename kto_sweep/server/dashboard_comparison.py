"""The comparison of a sweep's trials for the dashboard: places of runs, and the verdict on the sweep."""

import threading
from collections import OrderedDict
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypeVar

from kto_sweep.compare.as_data import importance_data, trial_data, verdict_data
from kto_sweep.compare.comparison import compare, sweep_importance
from kto_sweep.compare.importance import ImportanceTable
from kto_sweep.compare.ranking import RankedTrial, Ranking, Standing, rank, searched_parameters
from kto_sweep.sweep.gpu_hours import gpu_time
from kto_sweep.sweep.sweep_state import SweepStatus
from kto_sweep.sweep.view import SweepView

T = TypeVar("T")
Row = dict[str, Any]
MAX_CACHED = 64
"""Sweeps whose importance is kept."""
MAX_SHOWN = 8
"""Sweeps whose ranking is kept."""
MAX_LISTED = 500
"""Sweeps whose overview is kept: those of the list page."""


def places(ranking: Ranking) -> dict[str, Row]:
    """For each run its place in the sweep, in the order in which all faces list the runs."""
    return {item.trial.run_id: _place(item) for item in ranking.trials}


def _place(item: RankedTrial) -> Row:
    """The run's place, without its name: the `name` of the dashboard's rows is the id, `title` the name."""
    return {key: value for key, value in trial_data(item).items() if key != "name"}


class _Shown:
    """What the pages show of one status of a sweep; each part is computed when a page first asks for it."""

    def __init__(self, status: SweepStatus) -> None:
        self.status = status
        self.lock = threading.Lock()
        view = status.view
        self.ranking = rank(view, view.metric, view.goal)
        self.comparison: Row | None = None

    @cached_property
    def places(self) -> dict[str, Row]:
        return places(self.ranking)

    @cached_property
    def overview(self) -> Row:
        winners = [each for each in self.ranking.configurations if each.rank == 1]
        return {
            "best": winners[0].mean if len(winners) == 1 else None,
            "time": asdict(gpu_time(self.status.view, self.status.grid)),
        }


class ComparisonCache:
    """Compares sweeps, once for each status; the importance is kept until a run has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._importance: OrderedDict[str, tuple[object, ImportanceTable]] = OrderedDict()
        self._overviews: OrderedDict[str, tuple[SweepStatus, Row]] = OrderedDict()
        self._shown: OrderedDict[str, _Shown] = OrderedDict()

    def overview(self, status: SweepStatus) -> Row:
        """The best configuration's value, and the time of all devices."""
        ref = str(status.view.ref)
        with self._lock:
            known, overview = self._overviews.get(ref, (None, {}))
        if known is status:
            return overview
        overview = self._of(status).overview
        with self._lock:
            _keep(self._overviews, ref, (status, overview), MAX_LISTED)
        return overview

    def places(self, status: SweepStatus) -> dict[str, Row]:
        """The place of each run, in their order."""
        return self._of(status).places

    def of(self, status: SweepStatus) -> Row:
        """The sweep's verdict, and importance as plain data."""
        shown = self._of(status)
        with shown.lock:  # the comparison of 50,000 runs takes seconds: one page computes it for all
            if shown.comparison is None:
                importance = self._importance_of(status.view, shown.ranking)
                comparison = compare(status.view, importance=importance)
                shown.comparison = {
                    "verdict": verdict_data(comparison),
                    "importance": importance_data(comparison),
                }
            return shown.comparison

    def _of(self, status: SweepStatus) -> _Shown:
        ref = str(status.view.ref)
        with self._lock:
            shown = self._shown.get(ref)
        if shown is None or shown.status is not status:
            shown = _Shown(status)
            with self._lock:
                _keep(self._shown, ref, shown, MAX_SHOWN)
        return shown

    def _importance_of(self, view: SweepView, ranking: Ranking) -> ImportanceTable:
        """Computes one at a time."""
        ended = [
            (item.trial.run_id, item.value, item.trial.failure)
            for item in ranking.trials
            if item.standing in {Standing.RANKED, Standing.FAILED}
        ]
        key = (view.metric, view.goal, view.space, hash(tuple(ended)))
        with self._lock:
            known, table = self._importance.get(str(view.ref), (None, None))
            if table is None or known != key:
                table = sweep_importance(searched_parameters(view), ranking, maximize=view.goal == "maximize")
            _keep(self._importance, str(view.ref), (key, table), MAX_CACHED)
        return table


def _keep(cache: OrderedDict[str, T], key: str, value: T, limit: int) -> None:
    """Adds an entry as the newest; the oldest ones above the limit go."""
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
