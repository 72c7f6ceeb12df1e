"""What the server has heard of the runs that an agent has ended.

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

LOOKS = 3
"""Times that the sweep is read while something is missing, or while its server does not answer."""
PAUSE_SECONDS = 15.0
"""Between two of them: a server may need a moment to take it in, or be revived by its lifeline meanwhile."""
NOT_ENDED = frozenset({"running", "crashed"})
"""States of a run whose end its server has not heard."""


def last_look(
    home: Home,
    token: str,
    read: Callable[[], SweepView],
    looks: int,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[SweepView, list[str]] | None:
    """The sweep, and the runs that this agent has ended and the server lacks something of.

    Those are recorded as unsent. `read` raises ServerError; None when it did so in all looks.
    """
    found: tuple[SweepView, list[str]] | None = None
    for look in range(looks):
        if look:
            sleep(PAUSE_SECONDS)
        with contextlib.suppress(ServerError):
            view = read()
            found = view, _missed(home, token, view)
            if not found[1]:
                return found
    note_unsent(home, found[1] if found else ())
    return found


def note_unsent(home: Home, run_ids: Iterable[str]) -> None:
    """Have `kto-sweep sync` see to these runs, which asks their server first."""
    for run_id in run_ids:
        folder = home.runs / run_id
        record = read_record(folder)
        if record is not None:
            with contextlib.suppress(OSError):  # on a full disk it is spoken of, at least
                replace(record, sent=False).write(folder)


def _missed(home: Home, token: str, view: SweepView) -> list[str]:
    own = home_id(home)
    return [trial.run_id for trial in view.trials if _is_missed(home, token, own, trial)]


def _is_missed(home: Home, token: str, own: str, trial: TrialRecord) -> bool:
    folder = home.runs / trial.run_id
    record = read_record(folder)
    if record is None or record.agent != token or not record.sent:
        return False
    if trial.device and trial.device.split()[0] != own:
        return False  # put back, and another box goes on with it
    return trial.state in NOT_ENDED or int(trial.summary.get("_step") or 0) < last_step(folder)
