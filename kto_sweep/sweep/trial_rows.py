"""The trials of a sweep as rows of JSON: how the embedded server reads them from its database and sends them.

A run's whole record has 4 kB, most of it about its machine and its libraries; a row has a fifth of that. So
the server answers with the runs of a large sweep in about a second, and they fit into a client's memory.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from kto_sweep.alerts import SUMMARY as ALERTS
from kto_sweep.compact_mapping import CompactMapping
from kto_sweep.compare.comparison import FIXED_COLUMNS
from kto_sweep.compare.confidence import DEGREES, DEVIATION
from kto_sweep.fingerprints import DATA, EVAL_DATA, MODEL
from kto_sweep.sweep.view import BUSY, DEVICE, OWNER, TrialRecord, busy_spans, seconds_of
from kto_sweep.trial import is_setting, unwrapped

SUMMARY_KEYS = (
    *("_step", "_runtime", BUSY, "trial/seconds", "trial/steps", "trial/health", "trial/health_message"),
    *("failure/cause", "failure/message", "objective/best", DATA, EVAL_DATA, MODEL, DEVIATION, DEGREES),
    ALERTS,
    *FIXED_COLUMNS,
)
"""All states, rankings and verdicts depend on these keys of the summaries, and on the sweep's metrics."""


class TrialRow(NamedTuple):
    """A run, without what states and comparisons of a sweep do not depend on."""

    run_id: str
    name: str
    state: str
    created: float | None
    """Unix seconds."""
    heartbeat: float | None
    is_paused: bool
    is_prior_run: bool
    value: float | None
    """The value of the sweep's metric, if `has_value`; else it is in the summary."""
    has_value: bool
    config: Mapping[str, Any]
    """As W&B stores it, perhaps without what wandb and kto-sweep record of the machine."""
    summary: Sequence[Any] | Mapping[str, Any]
    """The values of the requested keys; or the whole summary."""


def summary_keys(metrics: Iterable[str]) -> tuple[str, ...]:
    """The keys to request of the summaries of a sweep with these metrics."""
    return tuple(dict.fromkeys((*SUMMARY_KEYS, *metrics)))


def trial_record(row: TrialRow, keys: Sequence[str] | None, metric: str | None) -> TrialRecord:
    """The trial of a row; `keys`: those that were requested, None for whole summaries."""
    names = _setting_names(tuple(row.config))
    home, device = (unwrapped(row.config.get(name)) for name in (OWNER, DEVICE))
    if isinstance(row.summary, Mapping):
        summary = {key: row.summary[key] for key in keys or row.summary if key in row.summary}
    else:
        values = zip(keys or (), row.summary, strict=True)
        summary = {key: value for key, value in values if value is not None}
    if metric is not None and row.has_value and keys is not None:
        summary[metric] = row.value
    return TrialRecord(
        run_id=row.run_id,
        name=row.name,
        state=row.state,
        config=CompactMapping(names, [unwrapped(row.config[name]) for name in names]),
        summary=CompactMapping(tuple(summary), summary.values()),
        seconds=seconds_of(summary, row.created, row.heartbeat),
        created=row.created,
        device="" if home is None or device is None else _device(str(home), str(device)),
        is_prior_run=bool(row.is_prior_run),
        paused=bool(row.is_paused) and row.state == "preempted",
        heartbeat=row.heartbeat,
        busy=busy_spans(summary),
    )


@lru_cache(maxsize=4096)
def _setting_names(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Of the keys of a configuration those of a trial's settings."""
    return tuple(filter(is_setting, keys))


@lru_cache(maxsize=4096)
def _device(home: str, device: str) -> str:
    """The same text for all runs of a device."""
    return f"{home} {device}"


def write_row(head: Sequence[Any], config: str, summary: str) -> str:
    """A row as a line of JSON, from its first fields and the two texts, in which clients may send NaN."""
    line = f"{json.dumps(list(head), separators=(',', ':'))[:-1]},{config},{summary}]"
    return line.replace("\n", " ")  # no text in JSON contains a line break


def read_row(line: str | bytes) -> TrialRow:
    """The row of a line."""
    return TrialRow(*json.loads(line))
