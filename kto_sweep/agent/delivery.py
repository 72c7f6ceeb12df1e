"""Checks that the server has received the runs that an agent ended.

wandb abandons a run's stream after a single 4xx response, such as one from a gateway in front of a restarting
W&B server, and `finish` does not report it: only the server knows.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.run_log import last_step
from kto_sweep.run_record import home_id, read_record
from kto_sweep.sweep.view import SweepView, TrialRecord

ATTEMPTS = 3
"""Attempts to read the sweep while data is missing or the server does not respond."""
PAUSE_SECONDS = 15.0
"""Delay between attempts: a server may need a moment to store the data, or be restarting."""
NOT_ENDED = frozenset({"running", "crashed"})
"""States of a run whose end its server has not received."""


def check_delivery(
    home: Home,
    token: str,
    read: Callable[[], SweepView],
    attempts: int,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[SweepView, list[str]] | None:
    """The sweep, and the runs that this agent ended but the server does not have completely.

    These runs are recorded as unsent. None if `read` raises ServerError in every attempt.
    """
    result: tuple[SweepView, list[str]] | None = None
    for attempt in range(attempts):
        if attempt:
            sleep(PAUSE_SECONDS)
        with contextlib.suppress(ServerError):
            view = read()
            result = view, _incomplete(home, token, view)
            if not result[1]:
                return result
    record_unsent(home, result[1] if result else ())
    return result


def record_unsent(home: Home, run_ids: Iterable[str]) -> None:
    """Mark these runs for `kto-sweep sync`, which first checks what their server has."""
    for run_id in run_ids:
        folder = home.runs / run_id
        record = read_record(folder)
        if record is not None:
            with contextlib.suppress(OSError):  # on a full disk they are at least reported
                replace(record, sent=False).write(folder)


def _incomplete(home: Home, token: str, view: SweepView) -> list[str]:
    own = home_id(home)
    return [trial.run_id for trial in view.trials if _is_incomplete(home, token, own, trial)]


def _is_incomplete(home: Home, token: str, own: str, trial: TrialRecord) -> bool:
    folder = home.runs / trial.run_id
    record = read_record(folder)
    if record is None or record.agent != token or not record.sent:
        return False
    if trial.device and trial.device.split()[0] != own:
        return False  # requeued, and another box continues it
    return trial.state in NOT_ENDED or int(trial.summary.get("_step") or 0) < last_step(folder)
