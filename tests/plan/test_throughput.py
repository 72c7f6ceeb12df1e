"""Measured rates: written by training, used by plans."""

import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from kto_sweep.alerts import RunAlert
from kto_sweep.home import Home
from kto_sweep.models.architecture import BY_MODEL
from kto_sweep.plan.gpus import GPUS, present_gpu
from kto_sweep.plan.memory import AdapterShape, StepLoad
from kto_sweep.plan.timing import DATA_SHEET, MEASURED, TimingModel, estimate_trial_time
from kto_sweep.plan.workload import WorkloadCache
from kto_sweep.provenance import Provenance
from kto_sweep.throughput import FILE, Rate, read_rates, write_rates
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.trial.request import Report
from kto_sweep.train.worker.loop import train_trial
from kto_sweep.trial import Trial

torch.set_num_threads(1)

ROWS = str(Path(__file__).parents[2] / "examples" / "support_replies.jsonl")
MODEL = BY_MODEL["Qwen/Qwen2.5-7B-Instruct"]
LOAD = StepLoad(2000, 1700, 1700)


def rate(trials: int, tokens: float, seconds: float, device: str = "NVIDIA H200") -> Rate:
    return Rate(device, MODEL.key, "none", trials, tokens, seconds)


def test_the_newest_rate_of_a_kind_stays_and_a_damaged_file_is_empty(tmp_path: Path) -> None:
    assert read_rates(tmp_path) == []
    write_rates(tmp_path, [rate(1, 2000, 0.2), rate(3, 6000, 0.5)])
    write_rates(tmp_path, [rate(1, 2100, 0.3)])
    assert read_rates(tmp_path) == [rate(1, 2100, 0.3), rate(3, 6000, 0.5)]
    (tmp_path / FILE).write_text('{"format": 1, "rates": [{}]}')
    assert read_rates(tmp_path) == []
    write_rates(tmp_path, [rate(1, 1, 1)])
    assert len(read_rates(tmp_path)) == 1


def test_a_full_disk_keeps_the_old_rates_and_no_scratch_file(tmp_path: Path) -> None:
    write_rates(tmp_path, [rate(1, 2000, 0.2)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        write_rates(tmp_path, [rate(2, 4000, 0.3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert read_rates(tmp_path) == [rate(1, 2000, 0.2)]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_measured_rate_takes_precedence_over_the_data_sheet() -> None:
    sheet = TimingModel.of(MODEL, "none", GPUS["h200"], "", [rate(1, 2000, 0.4)])
    here = TimingModel.of(MODEL, "none", GPUS["h200"], "NVIDIA H200", [rate(1, 2000, 0.4)])
    guessed, measured = sheet.step(LOAD, AdapterShape(1, 16)), here.step(LOAD, AdapterShape(1, 16))
    assert guessed is not None
    assert measured is not None
    assert (guessed.factor, guessed.source) == (DATA_SHEET, "data sheet")
    assert (measured.seconds, measured.factor) == (pytest.approx(0.4), MEASURED)
    assert measured.at_most == pytest.approx(0.4 * MEASURED)
    # For another number of trials, it scales like the timing model's step.
    three = here.step(StepLoad(6000, 5100, 5100), AdapterShape(3, 16))
    assert three is not None
    assert 0.4 < three.seconds < 3 * 0.4
    assert three.factor > MEASURED


def test_the_time_on_an_unknown_device_is_unknown() -> None:
    assert (
        TimingModel.of(MODEL, "none", None, "cpu", [rate(1, 2000, 0.4)]).step(LOAD, AdapterShape(1, 16))
        is None
    )
    unknown = present_gpu("Some Accelerator", 64.0)
    assert not TimingModel.of(MODEL, "none", unknown, unknown.name, []).known


def test_training_writes_its_rate_and_an_estimate_uses_it(home: Home, tmp_path: Path) -> None:
    trial = Trial(model="tiny", dataset=ROWS, batch_size=4, max_length=96, max_steps=14)
    context = WorkerContext(home, torch.device("cpu"))
    seconds = train_trial(context, trial, tmp_path / "out", Silent(), lambda: False)
    (rates,) = read_rates(home.root)
    assert (rates.device, rates.model, rates.trials) == ("cpu", BY_MODEL["tiny"].key, 1)
    assert rates.tokens > 4 * 20
    timing = TimingModel.of(BY_MODEL["tiny"], "none", None, "cpu", [rates])
    estimate = estimate_trial_time(trial, WorkloadCache().workload(trial), timing)
    assert estimate is not None
    assert estimate.seconds > 14 * rates.seconds / 2
    half = estimate_trial_time(trial, WorkloadCache().workload(trial), timing, done_steps=7)
    assert half is not None
    assert half.seconds < estimate.seconds
    assert seconds.steps == 14


class Silent(Report):
    """A report that ignores everything."""

    def preparing(self, what: str, done: int, total: int) -> None:
        pass

    def loaded(self, provenance: Provenance) -> None:
        pass

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def alert(self, alert: RunAlert) -> None:
        pass
