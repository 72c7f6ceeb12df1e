"""The state of each cell of a grid."""

from dataclasses import replace

import pytest

from kto_sweep.errors import FailureCause
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.grid_status import count_missing, read_grid_status
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.trial_state import TrialState
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.sweep_file.sweep_config import expected_trials

PARAMETERS = {
    "learning_rate": {"values": [1e-6, 1e-5]},
    "lora": {"parameters": {"r": {"values": [8, 16]}}},
    "beta": {"value": 0.1},
}


def trial(run_id, learning_rate, r, state="finished", cause=None):
    summary = {"_step": 9} if cause is None else {"_step": 9, "failure/cause": cause}
    config = {"learning_rate": learning_rate, "lora": {"r": r}, "beta": 0.1, "added_by_the_script": 1}
    return TrialRecord(run_id, run_id, state, config, summary, 60.0)


def view(*trials, state="RUNNING", method="grid", cap=None):
    space = parse_space(PARAMETERS)[0]
    expected = expected_trials({"method": method, "run_cap": cap}, space)
    ref = SweepRef("local", "kto-sweep", "s")
    return SweepView(ref, "", "s", state, method, "loss", "minimize", space, expected, trials)


def states(status):
    return [(cell.config["learning_rate"], cell.config["lora"]["r"], cell.state) for cell in status.cells]


def test_every_cell_of_a_grid_is_listed_once_in_its_order():
    status = read_grid_status(
        view(trial("a", 1e-5, 8), trial("b", 1e-6, 16, "running"), trial("c", 1e-5, 16, "failed"))
    )
    assert states(status) == [
        (1e-6, 8, TrialState.NOT_STARTED),
        (1e-6, 16, TrialState.RUNNING),
        (1e-5, 8, TrialState.FINISHED),
        (1e-5, 16, TrialState.FAILED),
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


def test_a_stopped_trial_is_done():
    status = read_grid_status(view(trial("a", 1e-6, 8, "killed"), trial("b", 1e-6, 16)))
    assert [cell.trial.run_id for cell in status.done] == ["a", "b"]
    assert [cell.trial.run_id for cell in status.in_state(TrialState.STOPPED)] == ["a"]


def test_a_canceled_trial_is_not_done_and_resume_retries_it():
    status = read_grid_status(view(trial("a", 1e-6, 8, "killed"), trial("b", 1e-6, 16), state="CANCELED"))
    assert [cell.trial.run_id for cell in status.done] == ["b"]
    assert status.retried_by_resume() == ("a",)


def test_a_waiting_trial_is_not_missing():
    sweep = view(trial("a", 1e-6, 8, "preempted"), state="FINISHED")
    assert count_missing(sweep, read_grid_status(sweep)) == 3


def test_cells_that_a_cap_leaves_out_are_not_missing():
    status = read_grid_status(view(trial("a", 1e-5, 16, "failed"), cap=2))
    assert states(status) == [(1e-6, 8, TrialState.NOT_STARTED), (1e-5, 16, TrialState.FAILED)]


def test_a_run_outside_of_the_grid_is_listed_separately():
    status = read_grid_status(view(trial("a", 3e-4, 8)))
    assert [run.run_id for run in status.outside_grid] == ["a"]
    assert {cell.state for cell in status.cells} == {TrialState.NOT_STARTED}


def test_a_sweep_without_cells_has_its_runs():
    status = read_grid_status(view(trial("a", 3e-4, 8), trial("b", 2e-4, 8, "crashed"), method="random"))
    assert [(cell.trial.run_id, cell.state) for cell in status.cells] == [
        ("a", TrialState.FINISHED),
        ("b", TrialState.FAILED),
    ]
    assert not status.lists_every_cell


def test_prior_runs_count_in_a_grid_alone():
    runs = (replace(trial("a", 1e-6, 8), is_prior_run=True), trial("b", 1e-5, 8, "running"))
    counted = {TrialState.RUNNING: 1, TrialState.FINISHED: 1, TrialState.NOT_STARTED: 2}
    for sweep, expected in ((view(*runs), counted), (view(*runs, method="random"), {TrialState.RUNNING: 1})):
        counts = read_grid_status(sweep).counts
        assert {state: count for state, count in counts.items() if count} == expected
