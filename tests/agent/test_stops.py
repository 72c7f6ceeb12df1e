"""Trials that the server stops while no worker is training them."""

from pathlib import Path

import pytest
from agent_harness import CONFIG, AgentHarness, later

from kto_sweep.agent import executor
from kto_sweep.agent.events import StopRequested
from kto_sweep.wandb_client.private_api import Command


def one_cell(stops: bool):
    """A server with one cell, which it may stop at its first heartbeat."""
    sent: list[str] = []

    def beat(agent: str, runs: list[str]) -> list[Command]:
        if runs:
            return [Command("stop", runs[0])] if stops else []
        if sent:
            return [Command("exit")]
        sent.append("cell0")
        return [Command("run", "cell0", CONFIG)]

    return beat


@pytest.mark.parametrize("way", ["heartbeat", "run"])
def test_a_trial_that_waits_for_disk_space_is_stopped_at_once(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    looks: list[Path] = []

    def shortage(folder: Path) -> str:
        looks.append(folder)
        return "rejects writes" if len(looks) > 1 else ""  # its run was opened before the disk filled

    monkeypatch.setattr(executor, "shortage", shortage)
    harness.beat = one_cell(stops=way == "heartbeat")
    if way == "run":
        later(
            lambda: "is waiting for disk space" in harness.said(),
            lambda: harness.happens(StopRequested("cell0")),
        )
    monkeypatch.setattr(executor, "SHORT_SECONDS", 0.1)
    stats = harness.perform().stats
    assert harness.ends == [("cell0", "stopped")]
    assert stats.stopped == 1
    assert not harness.orders


def test_a_trial_whose_run_cannot_be_opened_is_dropped_when_it_is_stopped(harness: AgentHarness) -> None:
    def refuse(run_id: str) -> None:
        raise OSError("403 Forbidden")

    harness.beat, harness.open_run = one_cell(stops=True), refuse
    assert harness.perform().stats.started == 0
    assert "run cell0 stopped" in harness.said()
