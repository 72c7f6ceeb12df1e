"""The rankings of a sweep on the dashboard: one for each set of rows that its runs were judged on."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from kto_sweep.compare.eval_groups import (
    ROW_SETTINGS,
    eval_groups,
    is_measured_on_eval_rows,
    several_rankings,
)
from kto_sweep.fingerprints import EVAL_DATA, TrainedRun
from kto_sweep.server import run_writes
from kto_sweep.server.store import lines, runs
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import SweepRules
from kto_sweep.trial import parameter_name


def group_runs(sweep_runs: Sequence[Run], metric: str) -> list[str]:
    """For each run the name of its eval_groups group; "" for all if there is only one."""
    trained = [
        TrainedRun.of(run.name, run_writes.plain_config(run.config), lines.as_row(run.summary) or {})
        for run in sweep_runs
    ]
    return eval_groups(trained, [metric])


def rankings(connection: sqlite3.Connection, sweep: Sweep, rules: SweepRules) -> dict[str, Any] | None:
    """Names of the `groups`, the number of each run's group (`of`), and `why`; None for one ranking."""
    if rules.metric is None or not is_measured_on_eval_rows(rules.metric.name):
        return None
    if not _may_differ(connection, sweep, rules):
        return None
    listed = [*runs.prior_runs(connection, sweep.id), *runs.of_sweep(connection, sweep.id)]
    groups = group_runs(listed, rules.metric.name)
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return None
    return {
        "groups": names,
        "of": {run.name: names.index(group) for run, group in zip(listed, groups, strict=True)},
        "why": several_rankings(rules.metric.name, names)[0],
    }


def _may_differ(connection: sqlite3.Connection, sweep: Sweep, rules: SweepRules) -> bool:
    """Whether the runs can have been judged on different rows: reading all of them takes long."""
    searched = {parameter_name(parameter.path) for parameter in (rules.space.searched if rules.space else ())}
    if searched & set(ROW_SETTINGS):
        return True
    condition = runs.in_sweep(sweep.id)
    (count,) = connection.execute(
        "SELECT COUNT(DISTINCT json_extract(COALESCE(strict_summary, summary), ?))"
        f" FROM run WHERE {condition.sql}",
        (f'$."{EVAL_DATA}"', *condition.parameters),
    ).fetchone()
    return bool(count > 1)
