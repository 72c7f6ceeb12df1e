"""One agent per GPU: locks that hold for all homes of a user, and vanish with their process."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kto_sweep.agent.devices import Device
from kto_sweep.errors import UsageError


@contextmanager
def held(devices: Sequence[Device]) -> Iterator[None]:
    """Have the GPUs among `devices` to ourselves until the end of the block.

    Raises UsageError when another agent has one of them.
    """
    folder = Path(tempfile.gettempdir()) / f"kto-sweep-{os.getuid()}"
    with ExitStack() as stack:
        for device in devices:
            if device.uuid:
                folder.mkdir(mode=0o700, exist_ok=True)
                stream = stack.enter_context((folder / f"{device.uuid}.lock").open("a+", encoding="ascii"))
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
