"""Trials whose runs cannot be opened keep their slots and do not use up the grid."""

import errno
import threading
from pathlib import Path

import pytest
from agent_harness import CONFIG, REF, AgentHarness, FakeWorker, Grid, later

from kto_sweep.agent import executor, lease, slots
from kto_sweep.agent.lease import OrphanedTrial, find_orphaned_trials
from kto_sweep.agent.state import MAX_OPENINGS, Assignment
from kto_sweep.agent.wandb_run import GivenBackError, Monitored
from kto_sweep.disk import shortage
from kto_sweep.locks import RunLock
from kto_sweep.protocol import Done, Order, StartTrial
from kto_sweep.run_record import RunRecord
from kto_sweep.wandb_client.private_api import Command


def finish_at_once(grid: Grid):
    def on_order(worker: FakeWorker, order: Order) -> None:
        if isinstance(order, StartTrial):
            grid.over.add(order.run_id)
            worker.say(Done(order.run_id, {}, stopped=False, steps=1))

    return on_order


def test_a_server_that_rejects_runs_temporarily_loses_no_cell(harness: AgentHarness) -> None:
    grid, rejected = Grid(3), []

    def refuse(run_id: str) -> None:
        if len(rejected) < 5:
            rejected.append(run_id)
            raise OSError("403 Forbidden")

    harness.beat, harness.open_run, harness.on_order = grid.beat, refuse, finish_at_once(grid)
    stats = harness.perform().stats
    assert set(rejected) == {"cell0"}
    assert grid.sent == {"cell0": 1, "cell1": 1, "cell2": 1}
    assert stats.finished == 3
    assert "run cell0 was not started: 403 Forbidden; next attempt in 0 s" in harness.said()
    assert ("cell0",) in harness.beats


def test_system_metrics_are_those_of_the_worker(harness: AgentHarness) -> None:
    grid, pids = Grid(2), []
    finish = finish_at_once(grid)

    def on_order(worker: FakeWorker, order: Order) -> None:
        pids.append(worker.pid)
        finish(worker, order)

    harness.beat, harness.on_order = grid.beat, on_order
    harness.perform()
    assert harness.monitored == [Monitored(pid, gpus=()) for pid in pids]


def test_a_slot_that_cannot_open_runs_closes_with_a_message(harness: AgentHarness) -> None:
    grid, tried = Grid(9), []

    def refuse(run_id: str) -> None:
        tried.append(run_id)
        raise OSError("401 Unauthorized")

    harness.beat, harness.open_run = grid.beat, refuse
    stats = harness.perform().stats
    assert len(tried) == slots.MAX_FAILED_TRIALS * MAX_OPENINGS
    assert (stats.started, stats.finished) == (0, 0)
    assert sum(grid.sent.values()) == slots.MAX_FAILED_TRIALS
    assert "cpu: 16 consecutive attempts to open a run failed; closing the slot" in harness.said()


def test_a_returned_trial_is_opened_only_when_the_server_sends_it_again(harness: AgentHarness) -> None:
    """Another agent may have it by then."""
    grid, rejected = Grid(2), []

    def refuse(run_id: str) -> None:
        if not rejected:
            rejected.append(run_id)
            grid.over.add(run_id)  # another agent has it
            raise GivenBackError("No space left on device")

    harness.beat, harness.open_run, harness.on_order = grid.beat, refuse, finish_at_once(grid)
    assert harness.perform().stats.started == 1
    assert harness.started() == ["cell1"]


def test_on_a_full_disk_a_trial_waits_and_no_other_is_requested(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, emptied = Grid(4), threading.Event()
    monkeypatch.setattr(executor, "shortage", lambda folder: "" if emptied.is_set() else "rejects writes")
    monkeypatch.setattr(executor, "SHORT_SECONDS", 1.0)

    def open_run(run_id: str) -> None:
        if not emptied.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    harness.beat, harness.open_run, harness.on_order = grid.beat, open_run, finish_at_once(grid)
    later(lambda: len([beat for beat in harness.beats if beat == ("cell0",)]) > 50, emptied.set)
    stats = harness.perform(slots=2).stats
    assert set(grid.sent.values()) == {1}
    assert stats.finished == 4
    assert "run cell0 is waiting for disk space" in harness.said()


def test_an_interrupted_agent_does_not_wait_for_runs_that_do_not_open(harness: AgentHarness) -> None:
    tried = []

    def refuse(run_id: str) -> None:
        tried.append(run_id)
        raise OSError("403 Forbidden")

    harness.beat = lambda agent, runs: [] if runs else [Command("run", "cell0", CONFIG)]
    harness.open_run = refuse
    later(lambda: len(tried) == 2, harness.interrupt)
    assert harness.perform().stats.interrupted == 2
    assert not harness.ends


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_read_only_disk_is_detected_before_the_folder_exists(tmp_path, monkeypatch, number) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(number, "no")

    assert not shortage(tmp_path / "runs" / "run1")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert shortage(tmp_path / "runs" / "run1") == "rejects writes: no"


def test_a_busy_orphan_is_taken_over_once_its_worker_has_exited(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, folder = Grid(1), harness.home.runs / "cell0"
    monkeypatch.setattr(lease, "WORKER_SECONDS", 0.02)
    folder.mkdir()
    (folder / "trial.json").write_text("{}")
    RunRecord(REF.entity, REF.project, REF.id, True, "", agent="dead").write(folder)
    harness.beat, harness.on_order = grid.beat, finish_at_once(grid)
    claim, took = RunLock(folder), []

    def take_over(orphan: OrphanedTrial, token: str) -> bool:
        took.append(token)
        return lease.take_over(orphan, token)

    monkeypatch.setattr(executor, "take_over", take_over)
    later(lambda: len(took) > 2 * MAX_OPENINGS, claim.release)
    (orphan,) = find_orphaned_trials(harness.home)
    left = Assignment.from_config(orphan.run_id, CONFIG, orphan=orphan)
    assert harness.perform([left]).stats.finished == 1
    assert harness.said().count("run cell0 is waiting: a dead agent's worker is still running it") == 1
    assert grid.sent == {"cell0": 0}
