"""Tiny trials for the co-trainer: real models, random rows, and a report that records."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_cases import tiny_model, token_rows

from kto_sweep.alerts import RunAlert
from kto_sweep.data.dataset import TrainingData
from kto_sweep.provenance import Provenance
from kto_sweep.train.base_model import LoadedBase
from kto_sweep.train.trial.request import TrainResult, TrialRequest
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.cotrainer import CoTrainer
from kto_sweep.trial import Trial

TIMES = ("tokens_per_second", "trial/seconds")


def make_base(seed: int = 0) -> LoadedBase:
    return LoadedBase("tiny", tiny_model(seed=seed), None, torch.float32, "none")  # type: ignore[arg-type]


def make_data(seed: int = 0) -> TrainingData:
    train, held_out = token_rows(14, seed=seed), token_rows(6, seed=9)
    return TrainingData.paired("data.jsonl", train, held_out, 24, ("14 rows",))


def make_trial(**more: Any) -> Trial:
    """High learning rate and few rows: everything moves in a few steps."""
    values = {
        "batch_size": 4,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "max_length": 24,
        "seed": 1,
        "eval_steps": 3,
    }
    return Trial(model="tiny", dataset="none", **values | more)


class Recorder:
    """A Report that records. Each step must come once, in order."""

    def __init__(self) -> None:
        self.planned: list[tuple[int, int]] = []
        self.rows: dict[int, Mapping[str, float]] = {}
        self.provenance = Provenance()
        self.notes: list[str] = []
        self.alerts: list[RunAlert] = []

    def preparing(self, what: str, done: int, total: int) -> None:
        pass

    def loaded(self, provenance: Provenance) -> None:
        self.provenance = provenance

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        self.planned.append((total_steps, done_steps))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        assert not self.rows or step == max(self.rows) + 1
        self.rows[step] = dict(values)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def alert(self, alert: RunAlert) -> None:
        self.alerts.append(alert)

    @property
    def values(self) -> dict[int, dict[str, float]]:
        """The rows without the metrics that depend on the clock."""
        return {
            step: {name: value for name, value in row.items() if name not in TIMES}
            for step, row in self.rows.items()
        }


class Clock:
    """A clock that advances by a microsecond per read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class TrainerHarness:
    """Steps a CoTrainer and keeps the reports and outcomes of its trials by name. A step takes 1 s."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder
        self.clock = Clock()
        rows = more.pop("rows", make_data())
        self.queue = AdmissionQueue()
        self.trainer = CoTrainer(
            more.pop("base", make_base()),
            rows,
            make_trial(),
            self.queue,
            cache=folder / "cache",
            clock=self.clock,
            **more,
        )
        self.reports: dict[str, Recorder] = {}
        self.outcomes: dict[str, TrainResult | Exception] = {}
        self.stop_requests: set[str] = set()

    def start(self, name: str, trial: Trial, logged: int | None = None) -> Recorder:
        report = self.reports[name] = Recorder()
        self.queue.put(
            TrialRequest(name, trial, self.folder / name, report, lambda: name in self.stop_requests, logged)
        )
        return report

    def stop(self, name: str) -> None:
        self.stop_requests.add(name)

    def steps(self, n: int) -> None:
        for _ in range(n):
            for outcome in self.trainer.step():
                assert outcome.run_id not in self.outcomes
                self.outcomes[outcome.run_id] = outcome.result
            self.settle()
            self.clock.now += 1

    def settle(self) -> None:
        """Wait until the files of the last step are written."""
        for training in self.trainer.active:
            if training._checkpoint_write is not None:
                training._checkpoint_write.exception()

    def crash(self) -> None:
        """Close the trainer; its trials are left at their last checkpoints."""
        self.trainer.close()

    @property
    def active(self) -> list[str]:
        """Names of the trials in slots, in the order in which they joined."""
        return [training.request.run_id for training in self.trainer.active]

    def run(self) -> "TrainerHarness":
        """Step until every trial has ended."""
        while self.trainer.busy:
            self.steps(1)
        return self

    def result(self, name: str) -> TrainResult:
        outcome = self.outcomes[name]
        assert isinstance(outcome, TrainResult), outcome
        return outcome


def train_alone(trial: Trial, folder: Path, **more: Any) -> TrainerHarness:
    """The harness of a trial that trained to its end alone; its folder is removed."""
    harness = TrainerHarness(folder / "alone", **more)
    harness.start("only", trial)
    harness.run()
    harness.trainer.close()
    shutil.rmtree(harness.folder)
    return harness


def expect_same(actual: Recorder, expected: Recorder, tolerance: float = 1e-4) -> None:
    assert actual.values.keys() == expected.values.keys()
    for step, row in expected.values.items():
        for name, value in row.items():
            assert actual.values[step][name] == pytest.approx(value, rel=tolerance, abs=tolerance), (
                step,
                name,
            )


@contextmanager
def limited_memory(trainer: CoTrainer, fits: Callable[[int], bool]) -> Iterator[None]:
    """A forward whose number of tokens does not fit runs out of memory."""

    def check(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if not fits(kwargs["input_ids"].shape[1]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")

    model = trainer._admission._inputs.base.model
    handle = model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    yield
    handle.remove()
