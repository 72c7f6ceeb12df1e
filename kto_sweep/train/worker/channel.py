"""A worker's connection to its supervisor: orders in, messages out (see protocol.py). No torch here."""

import contextlib
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from kto_sweep.alerts import RunAlert
from kto_sweep.errors import KtoSweepError
from kto_sweep.locks import RunLock
from kto_sweep.protocol import (
    Alert,
    Done,
    Failed,
    Loaded,
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
from kto_sweep.provenance import Provenance
from kto_sweep.train.failures import classify
from kto_sweep.train.trial.request import TrialRequest
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.trial import Trial


class Channel:
    """Receives orders on a thread, and sends messages from any thread. Trials to start go into `queue`."""

    def __init__(self, orders: BinaryIO, messages: BinaryIO, queue: AdmissionQueue) -> None:
        self._orders = orders
        self._messages = messages
        self._queue = queue
        self._lock = threading.Lock()
        self._stop_requested: set[str] = set()
        self._run_locks: dict[str, RunLock] = {}
        self._closed = threading.Event()
        self._exits_when_closed = False

    def listen(self) -> None:
        """Start the thread; it ends when the supervisor closes its end."""
        threading.Thread(target=self._read, daemon=True, name="orders").start()

    def _read(self) -> None:
        try:
            for line in self._orders:
                if line.endswith(b"\n"):  # a supervisor that is killed in mid-line leaves half of one
                    self._receive(decode(line))
        finally:
            self._close()

    def _receive(self, order: Order) -> None:
        if isinstance(order, StartTrial):
            self._start(order)
        else:
            self._stop_requested.add(order.run_id)

    def _start(self, start: StartTrial) -> None:
        run_id = start.run_id
        self._stop_requested.discard(run_id)  # of an earlier attempt
        self._lock_folder(start)
        try:
            trial = Trial.from_config(start.config)
        except Exception as error:
            self.send(failure(run_id, error))
            return
        request = TrialRequest(
            run_id,
            trial,
            Path(start.out_dir),
            ChannelReport(self, run_id),
            lambda: self.should_stop(run_id),
            start.logged_steps,
            Provenance.from_json(start.provenance),
        )
        self._queue.put(request)

    def _lock_folder(self, start: StartTrial) -> None:
        """Lock the trial's folder while this process may write to it, with or without its supervisor."""
        folder = Path(start.out_dir)
        with contextlib.suppress(OSError):  # the trial itself fails on it, with a message
            folder.mkdir(parents=True, exist_ok=True)
            self._run_locks[start.run_id] = RunLock(folder)

    def _close(self) -> None:
        self._closed.set()
        self._queue.close()
        if self._exits_when_closed:
            os._exit(1)

    @contextmanager
    def exit_when_closed(self) -> Iterator[None]:
        """In this block, the process exits at once when the supervisor is gone.

        For work that cannot be interrupted and has nothing to save, such as loading a model: otherwise the
        next agent would wait for the trials' folders until it is done.
        """
        self._exits_when_closed = True
        if self.closed:  # it was closed before the line above
            os._exit(1)
        try:
            yield
        finally:
            self._exits_when_closed = False

    @property
    def closed(self) -> bool:
        """Whether the supervisor is gone."""
        return self._closed.is_set()

    def should_stop(self, run_id: str) -> bool:
        """Whether this trial was told to stop, or the supervisor is gone."""
        return run_id in self._stop_requested or self.closed

    def send(self, message: Message) -> None:
        """Send one message. A supervisor that is gone is no error: the orders end as well."""
        if isinstance(message, Done | Failed) and message.run_id in self._run_locks:
            self._run_locks.pop(message.run_id).release()
        with self._lock:
            try:
                self._messages.write(encode(message))
                self._messages.flush()
            except BrokenPipeError:
                self._close()


class ChannelReport:
    """A trial's Report that sends everything to the supervisor."""

    def __init__(self, channel: Channel, run_id: str) -> None:
        self._channel = channel
        self._run_id = run_id

    def preparing(self, what: str, done: int, total: int) -> None:
        """Send the progress of the preparation."""
        self._channel.send(Preparing(self._run_id, what, done, total))

    def loaded(self, provenance: Provenance) -> None:
        """Send what the trial is trained with."""
        self._channel.send(Loaded(self._run_id, provenance.to_json()))

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Send the number of optimizer steps, and of those done before."""
        self._channel.send(Planned(self._run_id, total_steps, done_steps))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values measured at `step`."""
        self._channel.send(Metrics(self._run_id, step, dict(values)))

    def note(self, text: str) -> None:
        """Send one line of console log."""
        self._channel.send(Note(self._run_id, text))

    def alert(self, alert: RunAlert) -> None:
        """Send an alert."""
        self._channel.send(Alert(self._run_id, **asdict(alert)))


def failure(run_id: str, error: BaseException) -> Failed:
    """The message for a trial that raised `error`; with its traceback unless the words say all."""
    failed = classify(error)
    trace = "" if isinstance(error, KtoSweepError) else "".join(traceback.format_exception(error))
    return Failed(run_id, failed.cause, failed.message, failed.hint, trace)
