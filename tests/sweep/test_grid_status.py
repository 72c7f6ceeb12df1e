"""The state of each cell of a grid."""

import pytest

from kto_sweep.errors import FailureCause
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.grid_status import CellState, read_grid_status
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.sweep_file.sweep_config import expected_trials

PARAMETERS = {
    "learning_rate": {"values": [1e-6, 1e-5]},
    "lora": {"parameters": {"r": {"values": [8, 16]}}},
    "beta": {"value": 0.1},
}


def trial(run_id, learning_rate, r, state="finished", cause=None):
    summary = {} if cause is None else {"failure/cause": cause}
    config = {"learning_rate": learning_rate, "lora": {"r": r}, "beta": 0.1, "added_by_the_script": 1}
    return TrialRecord(run_id, run_id, state, config, summary, 60.0)


def view(*trials, state="RUNNING", method="grid", cap=None):
    space = parse_space(PARAMETERS)[0]
    expected = expected_trials({"method": method, "run_cap": cap}, space)
    ref = SweepRef("me", "kto", "s")
    return SweepView(ref, "", "s", state, method, "loss", "minimize", space, expected, trials)


def states(status):
    return [(cell.config["learning_rate"], cell.config["lora"]["r"], cell.state) for cell in status.cells]


def test_every_cell_of_a_grid_is_listed_once_in_its_order():
    status = read_grid_status(
        view(trial("a", 1e-5, 8), trial("b", 1e-6, 16, "running"), trial("c", 1e-5, 16, "failed"))
    )
    assert states(status) == [
        (1e-6, 8, CellState.MISSING),
        (1e-6, 16, CellState.RUNNING),
        (1e-5, 8, CellState.DONE),
        (1e-5, 16, CellState.FAILED),
    ]
    assert status.lists_every_cell
    assert status.outside_grid == ()


@pytest.mark.parametrize(
    ("states", "counted"),
    [
        (("failed", "finished"), 1),
        (("finished", "crashed"), 0),
        (("crashed", "running"), 1),
        (("killed", "failed"), 0),
        (("failed", "failed"), 1),
        (("running", "finished", "failed"), 1),
    ],
)
def test_the_most_advanced_run_of_a_cell_counts(states, counted):
    runs = [trial(str(number), 1e-6, 8, state) for number, state in enumerate(states)]
    cell = read_grid_status(view(*runs)).cells[0]
    assert cell.trial is runs[counted]
    assert cell.run_ids == tuple(run.run_id for run in runs)


@pytest.mark.parametrize(
    ("state", "cause", "retryable"),
    [
        ("crashed", None, True),
        ("failed", None, False),
        ("failed", FailureCause.WORKER_CRASH, True),
        ("failed", FailureCause.INTERNAL_ERROR, True),
        ("failed", FailureCause.DISK_FULL, True),
        ("failed", FailureCause.SICK_GPU, True),
        ("failed", FailureCause.NETWORK, True),
        ("failed", FailureCause.DIVERGED, False),
        ("failed", FailureCause.BAD_CONFIG, False),
        ("failed", FailureCause.BAD_DATA, False),
        ("failed", FailureCause.OUT_OF_MEMORY, False),
        ("failed", "a cause of another program", False),
        ("crashed", FailureCause.DIVERGED, False),
        ("killed", None, False),
        ("finished", FailureCause.NETWORK, False),
    ],
)
def test_only_failures_that_the_trial_did_not_cause_can_be_retried(state, cause, retryable):
    cell = read_grid_status(view(trial("a", 1e-6, 8, state, cause))).cells[0]
    assert cell.is_retryable is retryable


def test_a_waiting_trial_of_an_ended_sweep_is_missing():
    waiting = trial("a", 1e-6, 8, "preempted")
    assert read_grid_status(view(waiting)).cells[0].state is CellState.RUNNING
    assert read_grid_status(view(waiting, state="FINISHED")).cells[0].state is CellState.MISSING


def test_a_stopped_trial_is_done():
    status = read_grid_status(view(trial("a", 1e-6, 8, "killed"), trial("b", 1e-6, 16)))
    assert len(status.in_state(CellState.DONE)) == 2
    assert [cell.trial.run_id for cell in status.stopped] == ["a"]


def test_cells_that_a_cap_leaves_out_are_not_missing():
    status = read_grid_status(view(trial("a", 1e-5, 16, "failed"), cap=2))
    assert states(status) == [(1e-6, 8, CellState.MISSING), (1e-5, 16, CellState.FAILED)]


def test_a_run_outside_of_the_grid_is_listed_separately():
    status = read_grid_status(view(trial("a", 3e-4, 8)))
    assert [run.run_id for run in status.outside_grid] == ["a"]
    assert {cell.state for cell in status.cells} == {CellState.MISSING}


def test_a_sweep_without_cells_has_its_runs():
    status = read_grid_status(view(trial("a", 3e-4, 8), trial("b", 2e-4, 8, "crashed"), method="random"))
    assert [(cell.trial.run_id, cell.state) for cell in status.cells] == [
        ("a", CellState.DONE),
        ("b", CellState.FAILED),
    ]
    assert not status.lists_every_cell
