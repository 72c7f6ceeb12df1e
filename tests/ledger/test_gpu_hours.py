"""What a sweep has taken of its GPUs, by hand-made runs."""

from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.gpu_hours import spending, spent_seconds
from kto_sweep.sweep.grid_status import read_ledger
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView, TrialRecord

PARAMETERS = {"batch_size": {"values": [4, 8]}, "learning_rate": {"values": [1e-6, 1e-5]}}


def trial(batch_size, learning_rate, seconds, *, created=0.0, state="finished", place=""):
    config = {"batch_size": batch_size, "learning_rate": learning_rate}
    return TrialRecord("r", "r", state, config, {}, seconds, created, place=place)


def view(*trials):
    space = parse_space(PARAMETERS)[0]
    ref = SweepRef("me", "kto", "s")
    return SweepView(ref, "", "s", "RUNNING", "grid", "loss", "minimize", space, 4, trials)


def told(*trials):
    seen = view(*trials)
    found = spending(seen, read_ledger(seen))
    return found.spent, found.rest


def test_trials_together_on_one_gpu_count_once_and_gpus_of_one_trial_each():
    """0 to 100 and 50 to 150 on GPU 0 are 150 s; 40 s on two GPUs are 80; 30 s nobody knows where are 30."""
    assert spent_seconds(
        [
            trial(4, 1e-6, 100, place="a gpu 0"),
            trial(4, 1e-5, 100, created=50, place="a gpu 0"),
            trial(8, 1e-6, 40, place="b gpus 0,1"),
            trial(8, 1e-5, 30),
        ]
    ) == 150 + 80 + 30  # fmt: skip


def test_the_rest_takes_what_its_kind_took():
    """Batch 4 took 100 s and runs for 30 s once more; of batch 8 nothing is known but the average."""
    assert told(trial(4, 1e-6, 100), trial(4, 1e-5, 30, state="running")) == (130, 70 + 2 * 100)


def test_trials_trained_together_will_be_again():
    """Two trials of 100 s each in 100 s of the GPU: the other two take 100 s as well."""
    spent = told(trial(4, 1e-6, 100, place="a gpu 0"), trial(4, 1e-5, 100, place="a gpu 0"))
    assert spent == (100, 100)


def test_before_a_trial_has_ended_nothing_is_predicted():
    assert told() == (0, None)
    assert told(trial(4, 1e-6, 30, state="running")) == (30, None)
