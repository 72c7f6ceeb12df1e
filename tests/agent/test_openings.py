"""Trials whose runs cannot be opened: they keep their slots, and no grid is burnt."""

import errno
import threading
from pathlib import Path

import pytest
from stage import REF, Grid, Stage, Worker, later

from kto_sweep.agent import presence, stations, trials
from kto_sweep.agent.presence import Orphan, find_orphans
from kto_sweep.agent.runs import HandedBackError
from kto_sweep.disk import shortage
from kto_sweep.protocol import Done, Order, StartTrial
from kto_sweep.run_record import RunLock, RunRecord, home_id
from kto_sweep.sweep.view import OWNER
from kto_sweep.wandb_client.private_api import Command


def finish_at_once(grid: Grid):
    def on_order(worker: Worker, order: Order) -> None:
        if isinstance(order, StartTrial):
            grid.over.add(order.run_id)
            worker.say(Done(order.run_id, {}, stopped=False, steps=1))

    return on_order


def test_a_server_that_refuses_runs_for_a_while_costs_no_cell(stage: Stage) -> None:
    grid, refused = Grid(3), []

    def refuse(run_id: str) -> None:
        if len(refused) < 5:
            refused.append(run_id)
            raise OSError("403 Forbidden")

    stage.beat, stage.open_run, stage.on_order = grid.beat, refuse, finish_at_once(grid)
    tally = stage.perform()
    assert set(refused) == {"cell0"}
    assert grid.handed_out == {"cell0": 1, "cell1": 1, "cell2": 1}
    assert tally.finished == 3
    assert "run cell0 was not begun: 403 Forbidden; it is tried again in 0 s" in stage.said()
    assert ("cell0",) in stage.beats


def test_a_slot_that_can_open_nothing_ends_and_says_so(stage: Stage) -> None:
    grid, tried = Grid(9), []

    def refuse(run_id: str) -> None:
        tried.append(run_id)
        raise OSError("401 Unauthorized")

    stage.beat, stage.open_run = grid.beat, refuse
    tally = stage.perform()
    assert len(tried) == trials.GIVEN_UP * trials.OPENINGS
    assert (tally.started, tally.finished) == (0, 0)
    assert sum(grid.handed_out.values()) == trials.GIVEN_UP
    assert "cpu: a slot takes no more trials: 16 times, one after another" in stage.said()


def test_a_trial_that_was_handed_back_is_not_opened_here_unasked(stage: Stage) -> None:
    """By then another agent may have it."""
    grid, refused = Grid(2), []

    def refuse(run_id: str) -> None:
        if not refused:
            refused.append(run_id)
            grid.over.add(run_id)  # another agent has it
            raise HandedBackError("No space left on device")

    stage.beat, stage.open_run, stage.on_order = grid.beat, refuse, finish_at_once(grid)
    assert stage.perform().started == 1
    assert stage.started() == ["cell1"]


def test_on_a_full_disk_a_trial_waits_and_no_other_is_asked_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, emptied = Grid(4), threading.Event()
    monkeypatch.setattr(stations, "shortage", lambda folder: "" if emptied.is_set() else "takes no more")
    monkeypatch.setattr(stations, "SHORT_SECONDS", 1.0)

    def open_run(run_id: str) -> None:
        if not emptied.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    stage.beat, stage.open_run, stage.on_order = grid.beat, open_run, finish_at_once(grid)
    later(lambda: len([beat for beat in stage.beats if beat == ("cell0",)]) > 50, emptied.set)
    tally = stage.perform(trials_per_device=2)
    assert set(grid.handed_out.values()) == {1}
    assert tally.finished == 4
    assert "run cell0 waits for room" in stage.said()


def test_an_agent_that_is_interrupted_waits_for_no_run_that_cannot_be_opened(stage: Stage) -> None:
    tried = []

    def refuse(run_id: str) -> None:
        tried.append(run_id)
        raise OSError("403 Forbidden")

    stage.beat = lambda agent, runs: [] if runs else [Command("run", "cell0", {})]
    stage.open_run = refuse
    later(lambda: len(tried) == 2, stage.interrupt)
    assert stage.perform().interrupted == 2
    assert not stage.ends


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_is_found_before_there_is_a_folder(tmp_path, monkeypatch, number) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(number, "no")

    assert not shortage(tmp_path / "runs" / "run1")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert shortage(tmp_path / "runs" / "run1") == "refuses writes: no"


def test_a_trial_that_a_dead_agents_worker_keeps_is_taken_over_when_that_is_gone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, folder = Grid(1), stage.home.runs / "cell0"
    monkeypatch.setattr(presence, "WORKER_SECONDS", 0.02)
    found = ("running", {OWNER: home_id(stage.home)}, {})
    monkeypatch.setattr(trials, "read_run", lambda api, ref, run_id: found)
    folder.mkdir()
    (folder / "trial.json").write_text("{}")
    RunRecord(REF.entity, REF.project, REF.id, True, "", agent="dead").write(folder)
    stage.beat, stage.on_order = grid.beat, finish_at_once(grid)
    claim, took = RunLock(folder), []

    def take_over(orphan: Orphan, token: str) -> bool:
        took.append(token)
        return presence.take_over(orphan, token)

    monkeypatch.setattr(trials, "take_over", take_over)
    later(lambda: len(took) > 2 * trials.OPENINGS, claim.release)
    assert stage.perform(find_orphans(stage.home)).finished == 1
    assert stage.said().count("run cell0 waits: a worker of a dead agent has it still") == 1
    assert grid.handed_out == {"cell0": 0}
