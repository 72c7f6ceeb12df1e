"""One agent per GPU: locks that hold for all homes of a user, and vanish with their process."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from kto_sweep.agent.devices import Device
from kto_sweep.errors import UsageError


@contextmanager
def held(devices: Sequence[Device]) -> Iterator[None]:
    """Have the GPUs among `devices` to ourselves until the end of the block.

    Raises UsageError when another agent has one of them, or no lock can be made.
    """
    with ExitStack() as stack:
        for device in devices:
            if device.uuid:
                stream = stack.enter_context(_lock_file(device.uuid))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    stream.seek(0)
                    pid = stream.read().strip()
                    raise UsageError(
                        f"{device.name} is taken: the agent with process id {pid} trains on it",
                        hint="wait for it, choose another with --gpus, or add --share-gpus",
                    ) from None
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
        yield


def _lock_file(uuid: str) -> TextIO:
    try:
        folder = Path(tempfile.gettempdir()) / f"kto-sweep-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return (folder / f"{uuid}.lock").open("a+", encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(
            f"no lock can be made on the GPU {uuid}: {error}",
            hint="set TMPDIR to a folder that can be written to, or add --share-gpus",
        ) from error
