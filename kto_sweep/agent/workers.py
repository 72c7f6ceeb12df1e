"""The agent's side of a worker: a process that receives orders and sends messages."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kto_sweep.agent.devices import Device
from kto_sweep.home import Home
from kto_sweep.protocol import DEVICES, MESSAGE_FD, Message, Order, WorkerBroken, decode, encode

TRAINER = (sys.executable, "-m", "kto_sweep.train.worker")
"""Command of the process that trains: it takes orders and sends messages as protocol.py says."""
LAST_BYTES = 1 << 16
"""The agent reads this many bytes at the end of a worker's log after the worker exits."""
EXIT_SECONDS = 10.0
"""A worker has this long to exit when asked to, and again when killed."""
THREADS = 4
"""CPU threads of a worker with a GPU, which does little work on the host. By default torch uses a thread per
core; these wait for each other in busy loops, and those of several workers slow each other down."""


def log_path(home: Home, device: Device) -> Path:
    """The log file that all workers of a device append to."""
    return home.root / "workers" / f"{device.name.replace(' ', '-')}.log"


class WorkerProcess:
    """One worker process on one device.

    Raises OSError when it cannot be started.
    """

    def __init__(self, device: Device, home: Home, command: Sequence[str] = TRAINER) -> None:
        self.log = log_path(home, device)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._log_start = output.tell()  # after the output of earlier workers
            self._messages, send = os.pipe()
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(send,),
                    process_group=0,  # only the agent handles Ctrl-C in the terminal
                    env=_environment(device, home, send),
                )
            except BaseException:
                os.close(self._messages)
                raise
            finally:
                os.close(send)

    def listen(self, on_message: Callable[[Message], None]) -> int:
        """Pass on every message until the worker exits; returns its exit status (negative: the signal)."""
        with os.fdopen(self._messages, "rb") as messages:
            try:
                for line in messages:
                    if line.endswith(b"\n"):  # a worker killed while writing leaves an incomplete line
                        on_message(decode(line))
            except ValueError as error:
                on_message(WorkerBroken(str(error)))
                self._process.kill()
        return self._process.wait()

    def send(self, order: Order) -> None:
        """Send an order; if the worker has exited, `listen` reports it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(encode(order))
            self._process.stdin.flush()

    def end(self, *, at_once: bool = False) -> None:
        """Tell the worker to exit; kill it if it does not, or if `at_once`.

        A worker that hangs in the kernel because of a lost GPU survives even that and is left behind.
        """
        if at_once:
            self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)

    def kill(self) -> None:
        """Kill it as if it had crashed."""
        self._process.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_held(self) -> bool:
        """Whether it is suspended by SIGSTOP."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        return False

    def last_output(self, lines: int = 12) -> str:
        """The last lines that this worker printed; empty if its log is missing."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            start = self._log_start if self._log_start <= end else 0  # the file may have been truncated
            log.seek(max(start, end - LAST_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""


def _environment(device: Device, home: Home, message_fd: int) -> dict[str, str]:
    excluded = ("WANDB_", "PYTORCH_CUDA_ALLOC_CONF")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(excluded)}
    if device.visible:
        inherited.setdefault("OMP_NUM_THREADS", str(min(THREADS, len(os.sched_getaffinity(0)))))
    return inherited | {
        MESSAGE_FD: str(message_fd),
        "KTO_SWEEP_HOME": str(home.root),
        DEVICES: str(device.count),
        "CUDA_VISIBLE_DEVICES": device.visible,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi numbers them; CUDA's default is fastest first
        "PYTORCH_ALLOC_CONF": _allocator(os.environ),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # its output is a log file
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _allocator(environ: Mapping[str, str]) -> str:
    """torch's allocator settings: the user's, plus expandable segments, which prevent fragmentation.

    Without them, a step that used 42 GiB reserved 94 GiB.
    """
    settings = environ.get("PYTORCH_ALLOC_CONF") or environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    if "expandable_segments" in settings:
        return settings
    return f"{settings},expandable_segments:True".lstrip(",")
