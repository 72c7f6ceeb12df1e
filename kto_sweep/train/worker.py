"""One worker process: torch, one device, never wandb. Takes orders from its supervisor and trains.

`python -m kto_sweep.train.worker` is started by the supervisor only (see protocol.py).
"""

import contextlib
import gc
import os
import signal
import sys
import traceback

from kto_sweep.home import Home
from kto_sweep.protocol import DEVICES, MESSAGE_FD, Ready, WorkerBroken
from kto_sweep.train.mailbox import Mailbox


def work(mailbox: Mailbox, home: Home) -> None:
    """Train every trial that is ordered until the supervisor is gone."""
    gc.disable()
    from kto_sweep.train.device import describe_device, require_gpus
    from kto_sweep.train.dispatch import Dispatcher

    gc.freeze()  # what was imported stays: walking it takes a quarter of a second, in the middle of a step
    gc.enable()
    require_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    devices = int(os.environ.get(DEVICES, "1"))
    dispatcher = Dispatcher(home, mailbox, devices)
    mailbox.send(Ready(f"{devices} x {describe_device()}" if devices > 1 else describe_device()))
    dispatcher.run()


def main() -> None:
    """Run a worker on the descriptors that the supervisor passed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends a whole box reaches the supervisor: it decides
    messages = os.fdopen(int(os.environ[MESSAGE_FD]), "wb")
    mailbox = Mailbox(sys.stdin.buffer, messages)
    mailbox.listen()
    try:
        work(mailbox, Home.from_environment())
    except Exception as error:
        mailbox.send(WorkerBroken(f"{type(error).__name__}: {error}"))
        with contextlib.suppress(OSError):  # its log's disk may be full
            traceback.print_exc()
        os._exit(1)  # at an ordinary end Python would abort over the thread that waits for orders


if __name__ == "__main__":
    main()
