"""Time of a sweep on its devices, from hand-made runs."""

from dataclasses import replace

import pytest

from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.gpu_hours import gpu_time, spent_seconds
from kto_sweep.sweep.grid_status import read_grid_status
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import BusySpan, SweepView, TrialRecord
from kto_sweep.trial import with_defaults

PARAMETERS = {"batch_size": {"values": [4, 8]}, "learning_rate": {"values": [1e-6, 1e-5]}}


def trial(batch_size, learning_rate, seconds, *, created=0.0, state="finished", device=""):
    config = {"batch_size": batch_size, "learning_rate": learning_rate}
    busy = (BusySpan(device, created, created + seconds),) if device else ()
    return TrialRecord("r", "r", state, config, {}, seconds, created, device=device, busy=busy)


def view(*trials):
    space = parse_space(PARAMETERS)[0]
    ref = SweepRef("local", "kto-sweep", "s")
    return SweepView(ref, "", "s", "RUNNING", "grid", "loss", "minimize", space, 4, trials)


def gpu_seconds(*trials):
    sweep = view(*trials)
    time = gpu_time(sweep, read_grid_status(sweep))
    return time.spent, time.remaining


def test_trials_together_on_one_gpu_count_once_and_gpus_of_one_trial_each():
    """GPU 0 from 0 to 100 and 50 to 150: 150 s; two GPUs for 40 s: 80 s; an unknown device: 30 s."""
    assert spent_seconds(
        [
            trial(4, 1e-6, 100, device="a gpu 0"),
            trial(4, 1e-5, 100, created=50, device="a gpu 0"),
            trial(8, 1e-6, 40, device="b gpus 0,1"),
            trial(8, 1e-5, 30),
        ]
    ) == 150 + 80 + 30  # fmt: skip


def test_remaining_trials_take_as_long_as_trials_of_their_cost():
    """Batch 4 took 100 s, and another has run for 30 s; batch 8 is estimated by the average."""
    assert gpu_seconds(trial(4, 1e-6, 100), trial(4, 1e-5, 30, state="running")) == (130, 70 + 2 * 100)


def test_a_run_with_its_defaults_has_the_cost_of_its_cell():
    """Batch 4 took 100 s and batch 8 took 40 s, once each; the other two cells are as their batch size."""
    fixed = {"model_size": "tiny", "dataset": "rows.jsonl"}
    space = parse_space(PARAMETERS | {name: {"value": value} for name, value in fixed.items()})[0]
    trials = [
        TrialRecord("r", "r", "finished", with_defaults(fixed | config), {}, seconds, 0.0)
        for config, seconds in (
            ({"batch_size": 4, "learning_rate": 1e-6}, 100),
            ({"batch_size": 8, "learning_rate": 1e-6}, 40),
            ({"batch_size": 8, "learning_rate": 1e-5}, 40),
        )
    ]
    sweep = replace(view(*trials), space=space)
    assert gpu_time(sweep, read_grid_status(sweep)).remaining == 100


def test_trials_that_ran_together_are_expected_to_again():
    """Two trials of 100 s each took 100 s of the GPU, so the other two take 100 s as well."""
    spent = gpu_seconds(trial(4, 1e-6, 100, device="a gpu 0"), trial(4, 1e-5, 100, device="a gpu 0"))
    assert spent == (100, 100)


def test_before_a_trial_has_ended_nothing_is_predicted():
    assert gpu_seconds() == (0, None)
    assert gpu_seconds(trial(4, 1e-6, 30, state="running")) == (30, None)


def test_each_attempt_of_a_trial_counts_where_and_when_it_was():
    """GPU 0 from 0 to 100 and, after another trial from 100 to 200, again from 200 to 250."""
    again = trial(4, 1e-6, 100, device="a gpu 0")
    again = replace(again, busy=(*again.busy, BusySpan("a gpu 0", 200, 250)))
    assert spent_seconds([again, trial(4, 1e-5, 100, created=100, device="a gpu 0")]) == 250


def test_a_prior_run_was_paid_for_by_its_own_sweep():
    prior = replace(trial(4, 1e-6, 100), is_prior_run=True)
    assert gpu_seconds(prior, trial(4, 1e-5, 60)) == (60, 2 * 80)


@pytest.mark.parametrize(
    ("devices", "unit"),
    [
        (["a gpu 0", "b gpus 0,1"], "GPU-hours"),
        (["a cpu", "b cpu"], "CPU-hours"),
        (["a cpu", "a gpu 0"], "device-hours"),
        (["a gpu 0", ""], "device-hours"),
        ([], "device-hours"),
    ],
)
def test_a_cpu_has_no_gpu_hours(devices, unit):
    sweep = view(*(trial(4, 1e-6, 10, device=device) for device in devices))
    assert gpu_time(sweep, read_grid_status(sweep)).unit == unit
