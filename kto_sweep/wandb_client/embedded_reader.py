"""Reads a sweep's trials from an embedded server by its own route.

By GraphQL, 50,000 trials take minutes.
"""

import base64
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import yaml

from kto_sweep.errors import ServerError
from kto_sweep.http import NoAnswerError, read_lines
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.trial_rows import read_row, trial_record
from kto_sweep.sweep.view import TrialRecord

ANSWER_SECONDS = 120.0
"""Timeout of each part of the response."""
PROGRESS_ROWS = 500
"""Rows between two reports of progress."""


class NotFoundError(Exception):
    """The server has no such sweep."""


@dataclass(frozen=True)
class SweepRows:
    """What a server says about a sweep."""

    config: Mapping[str, Any]
    """Its registered configuration."""
    state: str
    updated: float | None
    now: float
    """The server's clock, in Unix seconds."""
    trials: tuple[TrialRecord, ...]


def read_rows(
    url: str, key: str, ref: SweepRef, metrics: Collection[str] | None, progress: Callable[[int], None]
) -> SweepRows:
    """The sweep; with `metrics` besides those of the sweep in the summaries, or whole summaries if None.

    Raises NotFoundError, NoAnswerError, and ServerError for another error of the server.
    """
    query = urlencode([("whole", "1")] if metrics is None else [("key", metric) for metric in metrics])
    path = "/".join(quote(part, safe="") for part in (ref.entity, ref.project, ref.id))
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    received = read_lines(
        f"{url}/-/trials/{path}?{query}",
        timeout=ANSWER_SECONDS,
        headers={"authorization": f"Basic {credentials}"},
    )
    status, first = next(received), next(received, b"")
    if status != b"200":
        raise (
            NotFoundError if status == b"404" else ServerError(f"{_message(first)} (HTTP {status.decode()})")
        )
    head: dict[str, Any] = json.loads(first)
    trials: list[TrialRecord] = []
    line = b""
    for line in received:
        if not line.startswith(b"["):
            break
        trials.append(trial_record(read_row(line), head["keys"], head["metric"]))
        if len(trials) % PROGRESS_ROWS == 0:
            progress(len(trials))
    if line != b"%d" % len(trials):
        raise NoAnswerError("the answer is cut off")
    return SweepRows(
        yaml.safe_load(head["config"]), head["state"], head["updated"], head["now"], tuple(trials)
    )


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["errors"][0]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
