"""One worker process: torch, one device, never wandb. Takes orders from its supervisor and trains.

`python -m kto_sweep.train.worker` is started by the supervisor only (see protocol.py).
"""

import os
import queue
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

from kto_sweep.errors import DataError, FailureCause, KtoSweepError, TrialFailure, UsageError
from kto_sweep.home import Home
from kto_sweep.protocol import (
    MESSAGE_FD,
    Alert,
    Done,
    Failed,
    Message,
    Metrics,
    Note,
    Planned,
    Preparing,
    Ready,
    Start,
    Stop,
    decode,
    encode,
)
from kto_sweep.trial import Trial


class Mailbox:
    """The worker's two lines: orders in, messages out."""

    def __init__(self, orders: BinaryIO, messages: BinaryIO) -> None:
        self._orders = orders
        self._messages = messages
        self._lock = threading.Lock()
        self._to_stop: set[str] = set()
        self._closed = threading.Event()
        self.starts: queue.Queue[Start | None] = queue.Queue()
        """Trials to train; None once the supervisor is gone."""

    def listen(self) -> None:
        """Read orders in the background until the supervisor closes its end."""
        threading.Thread(target=self._read, daemon=True, name="orders").start()

    def _read(self) -> None:
        for line in self._orders:
            order = decode(line)
            if isinstance(order, Start):
                self.starts.put(order)
            elif isinstance(order, Stop):
                self._to_stop.add(order.run_id)
        self._closed.set()
        self.starts.put(None)

    def should_stop(self, run_id: str) -> bool:
        """Whether this trial was told to stop, or nobody is left to report to."""
        return run_id in self._to_stop or self._closed.is_set()

    def send(self, message: Message) -> None:
        """Send one message; a supervisor that is gone is no error, the order line says so too."""
        with self._lock:
            try:
                self._messages.write(encode(message))
                self._messages.flush()
            except BrokenPipeError:
                self._closed.set()


class MailReport:
    """A training function's Report that goes to the supervisor."""

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
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
        return Failed(
            run_id, FailureCause.DISK_FULL, str(error), "free some disk space and run the agent again"
        )
    trace = "".join(traceback.format_exception(error))
    return Failed(run_id, FailureCause.WORKER_CRASH, f"{type(error).__name__}: {error}", trace=trace)


def work(mailbox: Mailbox, home: Home) -> None:
    """Train every trial that is ordered, one after another, until the supervisor is gone."""
    from kto_sweep.train.device import describe_device, is_out_of_memory
    from kto_sweep.train.session import Session

    session = Session(home)
    mailbox.send(Ready(describe_device()))
    while (order := mailbox.starts.get()) is not None:
        run_id = order.run_id
        should_stop = partial(mailbox.should_stop, run_id)
        try:
            trial = Trial.from_config(order.config)
            result = session.train(trial, Path(order.out_dir), MailReport(mailbox, run_id), should_stop)
            mailbox.send(Done(run_id, dict(result.summary), result.steps, result.stopped))
        except Exception as error:  # whatever one trial does, the next one gets its turn
            if is_out_of_memory(error):
                error = TrialFailure(
                    FailureCause.OUT_OF_MEMORY,
                    str(error).splitlines()[0],
                    hint="use a smaller max_length or model, or quantization: 4bit",
                )
            mailbox.send(failure(run_id, error))


def main() -> None:
    """Run a worker on the descriptors that the supervisor passed."""
    messages = os.fdopen(int(os.environ[MESSAGE_FD]), "wb")
    mailbox = Mailbox(sys.stdin.buffer, messages)
    mailbox.listen()
    work(mailbox, Home.from_environment())


if __name__ == "__main__":
    main()
