"""One worker process: torch, one device, never wandb. It trains what its supervisor orders.

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
from kto_sweep.train.failures import classify
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.channel import Channel


def run(channel: Channel, queue: AdmissionQueue, home: Home) -> None:
    """Train every trial that is ordered until the supervisor is gone."""
    gc.disable()
    from kto_sweep.train.device import describe_device, require_gpus
    from kto_sweep.train.worker.loop import WorkerLoop

    gc.freeze()  # imported objects stay: a collection that walks them takes 0.25 s in the middle of a step
    gc.enable()
    require_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    devices = int(os.environ.get(DEVICES, "1"))
    loop = WorkerLoop(home, channel, queue, devices)
    channel.send(Ready(f"{devices} x {describe_device()}" if devices > 1 else describe_device()))
    loop.run()


def main() -> None:
    """Run a worker on the file descriptors that the supervisor passed."""
    home = Home.from_environment()
    home.keep_private()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A signal to the whole machine or terminal reaches the supervisor too, and it decides.
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(int(os.environ[MESSAGE_FD]), "wb")
    queue = AdmissionQueue()
    channel = Channel(sys.stdin.buffer, messages, queue)
    # Before torch is imported: the locks on trials' folders must not come seconds after their orders.
    channel.listen()
    try:
        run(channel, queue, home)
    except Exception as error:
        failed = classify(error)
        hint = f"\n  Hint: {failed.hint}" if failed.hint else ""
        channel.send(WorkerBroken(f"{failed.message}{hint}", failed.cause))
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        os._exit(1)  # a normal exit would abort: the thread that reads orders blocks interpreter shutdown


if __name__ == "__main__":
    main()
