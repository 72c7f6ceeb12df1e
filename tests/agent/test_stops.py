"""Trials that the server stops while no worker has them."""

import pytest
from stage import Stage, later

from kto_sweep.agent import stations
from kto_sweep.agent.events import StopAsked
from kto_sweep.wandb_client.private_api import Command


def one_cell(stops: bool):
    """A server with one cell, which it stops or not when it hears of it."""
    handed_out: list[str] = []

    def beat(agent: str, runs: list[str]) -> list[Command]:
        if runs:
            return [Command("stop", runs[0])] if stops else []
        if handed_out:
            return [Command("exit")]
        handed_out.append("cell0")
        return [Command("run", "cell0", {})]

    return beat


@pytest.mark.parametrize("way", ["heartbeat", "run"])
def test_a_trial_that_waits_for_room_is_stopped_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(stations, "shortage", lambda folder: "takes no more")
    stage.beat = one_cell(stops=way == "heartbeat")
    if way == "run":
        later(lambda: "waits for room" in stage.said(), lambda: stage.happens(StopAsked("cell0")))
    monkeypatch.setattr(stations, "SHORT_SECONDS", 0.1)
    tally = stage.perform()
    assert stage.ends == [("cell0", "stopped")]
    assert tally.stopped == 1
    assert not stage.orders


def test_a_trial_whose_run_cannot_be_opened_is_let_go_when_it_is_stopped(stage: Stage) -> None:
    def refuse(run_id: str) -> None:
        raise OSError("403 Forbidden")

    stage.beat, stage.open_run = one_cell(stops=True), refuse
    assert stage.perform().started == 0
    assert "run cell0 is stopped" in stage.said()
