"""How many trials are planned to train at once."""

import numpy as np
import pytest

from kto_sweep.models.architecture import BY_MODEL
from kto_sweep.plan.gpus import GPUS
from kto_sweep.plan.timing import TimingModel
from kto_sweep.plan.together import MAX_TOGETHER, count_together
from kto_sweep.plan.workload import RowLengths, Workload
from kto_sweep.throughput import Rate
from kto_sweep.trial import Trial

ROWS = RowLengths(*(np.full(200, n) for n in (100, 150, 150)))
WORKLOAD = Workload(ROWS, ROWS, exact=True)
TRIAL = Trial(model="Qwen/Qwen2.5-0.5B-Instruct", dataset="rows.jsonl", batch_size=8, max_steps=20)
MODEL = BY_MODEL["Qwen/Qwen2.5-0.5B-Instruct"]


def timing(*seconds: float) -> TimingModel:
    """Of a device without a data sheet on which 1, 2, 4, ... trials take so many seconds a step."""
    tokens = WORKLOAD.mean_load(TRIAL).tokens
    rates = [Rate("gpu", MODEL.key, "none", 2**k, tokens * 2**k, s) for k, s in enumerate(seconds)]
    return TimingModel.of(MODEL, "none", None, "gpu", rates)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((0.1, 0.11, 0.13, 0.2, 0.39), 8), ((0.1, 0.198), 1), ((0.1, 0.1, 0.1, 0.1, 0.1), MAX_TOGETHER)],
)
def test_measured_steps_decide_how_many_pay(seconds: tuple[float, ...], expected: int) -> None:
    assert count_together(TRIAL, MODEL, WORKLOAD, timing(*seconds), usable_gib=100) == expected


def test_no_more_than_fit_are_planned_and_without_times_all_that_fit() -> None:
    fitting = count_together(TRIAL, MODEL, WORKLOAD, None, usable_gib=8)
    assert 1 < fitting < MAX_TOGETHER
    assert count_together(TRIAL, MODEL, WORKLOAD, timing(0.1, 0.1, 0.1, 0.1, 0.1), usable_gib=8) == fitting
    assert count_together(TRIAL, MODEL, WORKLOAD, None, usable_gib=1) == 0


def test_small_models_on_a_large_gpu_start_with_many_trials_and_large_ones_with_few() -> None:
    gpu = GPUS["h200"]
    small = TimingModel.of(MODEL, "none", gpu, gpu.name, ())
    assert count_together(TRIAL, MODEL, WORKLOAD, small, gpu.usable_gib) >= 8
    large = BY_MODEL["Qwen/Qwen2.5-7B-Instruct"]
    trial = Trial(model="Qwen/Qwen2.5-7B-Instruct", dataset="rows.jsonl", batch_size=8, max_steps=20)
    timed = TimingModel.of(large, "none", gpu, gpu.name, ())
    assert count_together(trial, large, WORKLOAD, timed, gpu.usable_gib) <= 4
