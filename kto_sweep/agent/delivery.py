"""What the server has received of the runs that an agent has ended.

wandb gives a run's stream up for good at one answer of 4xx, such as that of a gateway whose W&B is being
replaced, and its `finish` says nothing of that: only the server can tell.
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
"""To read the sweep, while something is missing or its server does not answer."""
PAUSE_SECONDS = 15.0
"""Between two attempts: a server may need a moment to store it, or be started again meanwhile."""
NOT_ENDED = frozenset({"running", "crashed"})
"""States of a run whose end its server has not received."""


def check_delivery(
    home: Home,
    token: str,
    read: Callable[[], SweepView],
    attempts: int,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[SweepView, list[str]] | None:
    """The sweep, and the runs that this agent has ended and of which the server lacks something.

    Those are recorded as unsent. `read` raises ServerError; None when it did so in all attempts.
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
    """Have `kto-sweep sync` check these runs, which asks their server first."""
    for run_id in run_ids:
        folder = home.runs / run_id
        record = read_record(folder)
        if record is not None:
            with contextlib.suppress(OSError):  # a full disk: they are reported at least
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
        return False  # put back, and another box continues it
    return trial.state in NOT_ENDED or int(trial.summary.get("_step") or 0) < last_step(folder)
