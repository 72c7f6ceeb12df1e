"""kto-sweep agent --gpus-per-trial: a real sweep, a real agent, two processes for the trial, on the CPU."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_python import TORCH, executable
from machine import KTO_SWEEP, Machine
from short_sweep import SWEEP

from kto_sweep.agent.devices import CPU, Device, grouped
from kto_sweep.errors import UsageError

SECONDS = 240.0


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of each process, by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (parent, (folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has just ended
    return found


def below(pid: int) -> dict[int, str]:
    """Command lines of all processes that descend from `pid`."""
    table = processes()
    found = {pid: ""}
    while True:
        new = {at: line for at, (parent, line) in table.items() if parent in found and at not in found}
        if not new:
            break
        found |= new
    del found[pid]
    return found


def until(seen: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not seen():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.2)


@pytest.fixture
def agent(machine: Machine, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real agent and a real worker. Ranks need not spend seconds on importing TRL."""
    python = str(executable(tmp_path, TORCH))
    machine.patch(f"import multiprocessing\nmultiprocessing.set_executable({python!r})\n")
    machine.cli = KTO_SWEEP
    sweep = SWEEP.replace("[3e-3, 1e-2]", "[3e-3]").replace("{value: 4}\n  max_l", "{value: 12}\n  max_l")
    machine.create_sweep(sweep + "  eval_steps: {value: 4}\n")
    process = machine.start("agent", "--cpu", "--gpus-per-trial", "2")
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_trial_on_two_devices_survives_its_worker_and_leaves_nothing_behind(
    machine: Machine, agent: subprocess.Popen[str]
) -> None:
    def checkpoints() -> list[Path]:
        return list(machine.home.runs.glob("*/checkpoint/last.safetensors"))

    until(checkpoints)
    [worker] = [pid for pid, line in below(agent.pid).items() if "kto_sweep.train.worker" in line]
    family = below(worker)
    assert len(family) >= 3  # two ranks, and multiprocessing's resource tracker
    os.kill(worker, signal.SIGKILL)
    output, _ = agent.communicate(timeout=SECONDS)
    assert agent.returncode == 0, output
    until(lambda: not family.keys() & processes().keys())
    assert "cpu: ready (2 x CPU" in output
    [log] = machine.home.runs.glob("*/console.log")
    assert "trained on 2 devices" in log.read_text()
    assert "resuming after step" in log.read_text()


def test_devices_are_grouped() -> None:
    gpus = [Device(f"gpu {at}", str(at), indices=(at,)) for at in range(4)]
    assert grouped(gpus, 2) == [
        Device("gpus 0,1", "0,1", count=2, indices=(0, 1)),
        Device("gpus 2,3", "2,3", count=2, indices=(2, 3)),
    ]
    assert grouped([CPU], 3) == [Device("cpu", "", count=3)]
    with pytest.raises(UsageError, match="--gpus-per-trial 3: cannot divide 4 GPUs by 3") as raised:
        grouped(gpus, 3)
    assert raised.value.hint.startswith("use --gpus-per-trial 2")
