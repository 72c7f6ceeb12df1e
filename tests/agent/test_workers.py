"""The agent's side of a worker process; a small script replaces the training."""

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kto_sweep.agent import workers
from kto_sweep.agent.devices import CPU, Device
from kto_sweep.agent.workers import LAST_BYTES, WorkerProcess
from kto_sweep.home import Home
from kto_sweep.protocol import Message, WorkerBroken

StartTrial = Callable[[str], "Started"]


class Started:
    """A worker and its messages."""

    def __init__(self, folder: Path, code: str) -> None:
        self.messages: list[Message] = []
        self.log = folder / "workers" / "gpu-0.log"
        command = [sys.executable, "-c", code]
        self.process = WorkerProcess(Device("gpu 0", ""), Home(folder), command)

    def wait(self) -> int:
        """Wait for its exit status."""
        status = self.process.listen(self.messages.append)
        self.process.end()
        return status


@pytest.fixture
def start(tmp_path) -> StartTrial:
    return partial(Started, tmp_path)


def test_the_last_output_excludes_earlier_workers(start):
    first = start("print('uncorrectable ECC error')")
    assert first.wait() == 0
    assert first.process.last_output() == "uncorrectable ECC error"
    second = start("print('mine')")
    assert second.wait() == 0
    assert second.process.last_output() == "mine"
    silent = start("")
    assert silent.wait() == 0
    assert silent.process.last_output() == ""
    silent.log.write_text("emptied since")
    assert silent.process.last_output() == "emptied since"


def test_a_worker_numbers_gpus_like_nvidia_smi(start, monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    worker = start("import os; print(os.environ['CUDA_DEVICE_ORDER'])")
    worker.wait()
    assert worker.process.last_output() == "PCI_BUS_ID"


def test_only_the_end_of_a_long_log_is_read(start):
    worker = start(f"print('x' * {LAST_BYTES} + 'y')")
    worker.wait()
    assert len(worker.process.last_output()) == LAST_BYTES - 1  # and the line's end


def test_a_worker_that_sends_an_invalid_message_is_killed(start):
    """The message is reported with the reason."""
    worker = start(
        "import os, time; os.write(int(os.environ['KTO_SWEEP_MESSAGE_FD']), b'nonsense\\n'); time.sleep(600)"
    )
    assert worker.wait() == -signal.SIGKILL
    (message,) = worker.messages
    assert isinstance(message, WorkerBroken)


def test_an_incomplete_message_of_a_killed_worker_is_ignored(start):
    worker = start("import os; os.write(int(os.environ['KTO_SWEEP_MESSAGE_FD']), b'{')")
    assert worker.wait() == 0
    assert not worker.messages


def test_a_gpu_worker_uses_few_host_threads_by_default(tmp_path, monkeypatch):
    def threads(device: Device) -> str | None:
        return workers._environment(device, Home(tmp_path), 3).get("OMP_NUM_THREADS")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(CPU) is None
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert threads(Device("gpu 0", "0")) == "4"
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 1})
    assert threads(Device("gpu 0", "0")) == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert threads(Device("gpu 0", "0")) == "8"
