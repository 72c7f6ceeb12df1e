"""The comparison of a sweep's trials for the dashboard: places of runs, and the verdict on the sweep."""

import threading
from collections import OrderedDict
from dataclasses import asdict
from typing import Any

from kto_sweep.compare.as_data import importance_data, trial_data, verdict_data
from kto_sweep.compare.comparison import compare, sweep_importance
from kto_sweep.compare.importance import ImportanceTable
from kto_sweep.compare.ranking import RankedTrial, Standing, rank, searched_parameters
from kto_sweep.sweep.gpu_hours import gpu_time
from kto_sweep.sweep.sweep_state import SweepStatus
from kto_sweep.sweep.view import SweepView

Row = dict[str, Any]
MAX_CACHED = 64
"""Sweeps whose importance is kept."""
MAX_LISTED = 500
"""Sweeps whose overview is kept: those of the list page."""


def places(view: SweepView) -> dict[str, Row]:
    """For each run its place in the sweep, in the order in which all faces list the runs."""
    ranking = rank(view, view.metric, view.goal)
    return {item.trial.run_id: _place(item) for item in ranking.trials}


def _place(item: RankedTrial) -> Row:
    """The run's place, without its name: the `name` of the dashboard's rows is the id, `title` the name."""
    return {key: value for key, value in trial_data(item).items() if key != "name"}


class ComparisonCache:
    """Compares sweeps; keeps the importance, which takes a second for 1,000 runs, until a run has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._importance: OrderedDict[str, tuple[object, ImportanceTable]] = OrderedDict()
        self._overviews: OrderedDict[str, tuple[SweepStatus, Row]] = OrderedDict()

    def overview(self, status: SweepStatus) -> Row:
        """The best configuration's value, and the time of all devices; cached for each status object."""
        view = status.view
        with self._lock:
            known, overview = self._overviews.get(str(view.ref), (None, {}))
        if known is status:
            return overview
        configurations = rank(view, view.metric, view.goal).configurations
        winners = [each for each in configurations if each.rank == 1]
        overview = {
            "best": winners[0].mean if len(winners) == 1 else None,
            "time": asdict(gpu_time(view, status.grid)),
        }
        with self._lock:
            self._overviews[str(view.ref)] = status, overview
            self._overviews.move_to_end(str(view.ref))
            while len(self._overviews) > MAX_LISTED:
                self._overviews.popitem(last=False)
        return overview

    def of(self, view: SweepView) -> Row:
        """The sweep's verdict, and importance as plain data."""
        comparison = compare(view, importance=self._importance_of(view))
        return {
            "verdict": verdict_data(comparison),
            "importance": importance_data(comparison),
        }

    def _importance_of(self, view: SweepView) -> ImportanceTable:
        """Computes one at a time."""
        ranking = rank(view, view.metric, view.goal)
        ended = [
            (item.trial.run_id, item.value, item.trial.failure)
            for item in ranking.trials
            if item.standing in {Standing.RANKED, Standing.FAILED}
        ]
        key = (view.metric, view.goal, view.space, ended)
        with self._lock:
            known, table = self._importance.get(str(view.ref), (None, None))
            if table is None or known != key:
                table = sweep_importance(searched_parameters(view), ranking, maximize=view.goal == "maximize")
                self._importance[str(view.ref)] = key, table
            self._importance.move_to_end(str(view.ref))
            while len(self._importance) > MAX_CACHED:
                self._importance.popitem(last=False)
        return table
