"""A worker's two lines to its supervisor: orders in, messages out (see protocol.py). No torch here."""

import contextlib
import queue
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from kto_sweep.errors import (
    DataError,
    FailureCause,
    KtoSweepError,
    TrialFailure,
    UsageError,
    is_disk_full,
)
from kto_sweep.protocol import (
    Alert,
    Done,
    Failed,
    Message,
    Metrics,
    Note,
    Order,
    Planned,
    Preparing,
    StartTrial,
    decode,
    encode,
)
from kto_sweep.run_record import RunLock


class Mailbox:
    """Orders as they come, and messages on their way."""

    def __init__(self, orders: BinaryIO, messages: BinaryIO) -> None:
        self._orders = orders
        self._messages = messages
        self._lock = threading.Lock()
        self._to_stop: set[str] = set()
        self._claims: dict[str, RunLock] = {}
        self._closed = threading.Event()
        self._starts: queue.Queue[StartTrial | None] = queue.Queue()
        """None wakes up who waits when the supervisor is gone."""

    def listen(self) -> None:
        """Read orders in the background until the supervisor closes its end."""
        threading.Thread(target=self._read, daemon=True, name="orders").start()

    def _read(self) -> None:
        try:
            for line in self._orders:
                if line.endswith(b"\n"):  # a supervisor that is killed in mid-line leaves half of one
                    self._take(decode(line))
        finally:
            self._close()

    def _take(self, order: Order) -> None:
        if isinstance(order, StartTrial):
            self._to_stop.discard(order.run_id)  # of an earlier attempt
            self._claim(order)
            self._starts.put(order)
        else:
            self._to_stop.add(order.run_id)

    def _claim(self, start: StartTrial) -> None:
        """Say that this process writes to the trial's folder, even when its supervisor is gone."""
        folder = Path(start.out_dir)
        with contextlib.suppress(OSError):  # the trial itself finds out, and says so
            folder.mkdir(parents=True, exist_ok=True)
            self._claims[start.run_id] = RunLock(folder)

    def _close(self) -> None:
        self._closed.set()
        self._starts.put(None)

    @property
    def closed(self) -> bool:
        """Nobody is left to work for."""
        return self._closed.is_set()

    def should_stop(self, run_id: str) -> bool:
        """Whether this trial was told to stop, or nobody is left to report to."""
        return run_id in self._to_stop or self.closed

    def starts(self, *, wait: bool) -> list[StartTrial]:
        """The trials ordered since the last call; with `wait`, not before there is one or nobody is left."""
        found = []
        try:
            found.append(self._starts.get(block=wait))
            while True:
                found.append(self._starts.get_nowait())
        except queue.Empty:
            return [start for start in found if start is not None]

    def send(self, message: Message) -> None:
        """Send one message; a supervisor that is gone is no error, the order line says so too."""
        if isinstance(message, Done | Failed) and message.run_id in self._claims:
            self._claims.pop(message.run_id).release()
        with self._lock:
            try:
                self._messages.write(encode(message))
                self._messages.flush()
            except BrokenPipeError:
                self._close()


class MailReport:
    """A trial's Report that goes to the supervisor."""

    def __init__(self, mailbox: Mailbox, run_id: str) -> None:
        self._mailbox = mailbox
        self._run_id = run_id

    def preparing(self, what: str, done: int, total: int) -> None:
        """Send how far the preparation is."""
        self._mailbox.send(Preparing(self._run_id, what, done, total))

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Send the number of optimizer steps, and of those done before."""
        self._mailbox.send(Planned(self._run_id, total_steps, done_steps))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values measured at `step`."""
        self._mailbox.send(Metrics(self._run_id, step, dict(values)))

    def note(self, text: str) -> None:
        """Send one line of console log."""
        self._mailbox.send(Note(self._run_id, text))

    def alert(self, title: str, text: str) -> None:
        """Send what a person should look at."""
        self._mailbox.send(Alert(self._run_id, title, text))


def failure(run_id: str, error: BaseException) -> Failed:
    """The message for a trial that raised `error`: its cause, and a traceback only for defects of ours."""
    if isinstance(error, TrialFailure):
        return Failed(run_id, error.cause, error.message, error.hint)
    if isinstance(error, DataError):
        return Failed(run_id, FailureCause.BAD_DATA, error.message, error.hint)
    if isinstance(error, UsageError):
        return Failed(run_id, FailureCause.BAD_CONFIG, error.message, error.hint)
    if isinstance(error, KtoSweepError):
        return Failed(run_id, FailureCause.WORKER_CRASH, error.message, error.hint)
    if is_disk_full(error):
        return Failed(
            run_id, FailureCause.DISK_FULL, str(error), "free some disk space and run the agent again"
        )
    trace = "".join(traceback.format_exception(error))
    return Failed(run_id, FailureCause.WORKER_CRASH, f"{type(error).__name__}: {error}", trace=trace)
