"""The devices that an agent uses, given the output of nvidia-smi and the environment."""

from pathlib import Path

import pytest

from kto_sweep.agent import devices
from kto_sweep.agent.devices import CPU, Device, find_devices
from kto_sweep.errors import UsageError

TWO = "echo '0, GPU-aaa'\necho '1, GPU-bbb'\n"
BOTH = [Device("gpu 0", "0", "GPU-aaa", indices=(0,)), Device("gpu 1", "1", "GPU-bbb", indices=(1,))]


@pytest.fixture
def tool(tmp_path, monkeypatch) -> Path:
    """A fake nvidia-smi: a shell script written by the test."""
    found = tmp_path / "nvidia-smi"
    found.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return found


def write(tool: Path, script: str) -> None:
    tool.write_text(f"#!/bin/sh\n{script}")


@pytest.mark.parametrize(
    ("limit", "found"),
    [(None, BOTH), ("1", BOTH[1:]), ("1,-1,0", BOTH[1:]), ("", [CPU]), ("-1", [CPU])],
)
def test_gpus_are_limited_by_the_environment(tool, limit, found):
    write(tool, TWO)
    environ = {} if limit is None else {"CUDA_VISIBLE_DEVICES": limit}
    assert find_devices(environ) == found
    assert find_devices({"CUDA_VISIBLE_DEVICES": "0"}, gpus="1") == BOTH[1:]
    assert find_devices({}, cpu=True) == [CPU]


def test_a_gpu_named_by_its_uuid_has_its_index(tool):
    write(tool, TWO)
    (device,) = find_devices({}, gpus="GPU-bbb")
    assert (device.visible, device.indices) == ("GPU-bbb", (1,))


@pytest.mark.parametrize("limit", ["MIG-1234", "GPU-a", "0,7"])
def test_missing_gpus_in_the_environment_are_an_error_and_not_the_cpu(tool, limit):
    write(tool, TWO)
    with pytest.raises(UsageError, match=f"CUDA_VISIBLE_DEVICES={limit}.*this box has 0, 1") as error:
        find_devices({"CUDA_VISIBLE_DEVICES": limit})
    assert "--cpu" in error.value.hint
    with pytest.raises(UsageError, match=f"--gpus {limit}"):
        find_devices({}, gpus=limit)


def test_a_box_without_gpus_trains_on_its_cpu(tool):
    write(tool, "echo 'No devices were found'; exit 6")
    assert find_devices({}) == find_devices({"CUDA_VISIBLE_DEVICES": "0"}) == [CPU]


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_failing_driver_is_an_error_and_not_the_cpu(tool, stream):
    write(tool, f"echo 'Failed to initialize NVML: Driver/library version mismatch' {stream}; exit 18")
    with pytest.raises(UsageError, match="version mismatch") as error:
        find_devices({})
    assert "--cpu" in error.value.hint
    assert find_devices({}, cpu=True) == find_devices({"CUDA_VISIBLE_DEVICES": ""}) == [CPU]


def test_a_slow_driver_is_queried_twice(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "ANSWER_SECONDS", 4.0)
    write(tool, f"test -e {tmp_path}/asked || {{ touch {tmp_path}/asked; exec sleep 60; }}\n{TWO}")
    assert find_devices({}) == BOTH
    write(tool, "exec sleep 60")
    monkeypatch.setattr(devices, "ANSWER_SECONDS", 0.1)
    with pytest.raises(UsageError, match="timed out"):
        find_devices({})
