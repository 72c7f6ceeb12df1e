"""A worker as its agent runs it: a real process, with orders and messages through real pipes."""

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import forked_python
import pytest
from small_models import save, small_model

from kto_sweep.agent.devices import CPU
from kto_sweep.agent.workers import TRAINER, WorkerProcess
from kto_sweep.home import Home
from kto_sweep.locks import try_exclusive
from kto_sweep.models.tiny import Recipe
from kto_sweep.protocol import (
    Done,
    Failed,
    Loaded,
    Message,
    Metrics,
    Note,
    Planned,
    Preparing,
    Ready,
    StartTrial,
    StopTrial,
)
from kto_sweep.train.tiny import MAKING

ROWS = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"
SECONDS = 120.0
PROVENANCE = {"code": {"commit": "c0ffee", "dirty": False}, "command": ["kto-sweep", "agent"]}
"""What the agent knows of its trials."""


class Worker:
    """A worker process and its messages."""

    def __init__(self, home: Home, command: Sequence[str]) -> None:
        self.home = home
        self.messages: list[Message] = []
        self._inbox: queue.Queue[Message | int] = queue.Queue()
        self.process = WorkerProcess(CPU, home, command)
        self.status: int | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self._inbox.put(self.process.listen(self._inbox.put))

    @property
    def pid(self) -> int:
        return self.process._process.pid

    def start(self, run_id: str, logged: int | None = None, **config: Any) -> None:
        values = {
            "model_size": "tiny",
            "dataset": str(ROWS),
            "max_length": 128,
            "max_steps": 4,
            "batch_size": 4,
            "learning_rate": 3e-3,
        }
        folder = str(self.home.runs / run_id)
        self.process.send(StartTrial(run_id, values | config, folder, logged, PROVENANCE))

    def until(self, matches: Callable[[Message], bool]) -> Message:
        """Wait for a message."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.status is None:
            message = self._inbox.get(timeout=SECONDS)
            if isinstance(message, int):
                self.status = message
                break
            self.messages.append(message)
            if matches(message):
                return message
        raise AssertionError(f"no such message; {self.process.last_output()}\n{self.messages[-20:]}")

    def until_ended(self, *run_ids: str) -> dict[str, Done | Failed]:
        ended: dict[str, Done | Failed] = {}
        while not ended.keys() >= set(run_ids):
            message = self.until(lambda message: isinstance(message, Done | Failed))
            assert isinstance(message, Done | Failed)
            ended[message.run_id] = message
        return ended

    def until_step(self, run_id: str, step: int) -> None:
        self.until(
            lambda message: isinstance(message, Metrics) and (message.run_id, message.step) == (run_id, step)
        )

    def rows(self, run_id: str) -> dict[int, dict[str, float]]:
        """Its metrics by step; each must be reported once."""
        rows: dict[int, dict[str, float]] = {}
        for message in self.messages:
            if isinstance(message, Metrics) and message.run_id == run_id:
                assert not rows.setdefault(message.step, {}).keys() & message.values.keys()
                rows[message.step] |= message.values
        return rows

    def notes(self, run_id: str) -> list[str]:
        notes = [message for message in self.messages if isinstance(message, Note)]
        return [note.text for note in notes if note.run_id == run_id]

    def wait(self) -> int:
        """Its exit status."""
        end = time.monotonic() + SECONDS
        while self.status is None and time.monotonic() < end:
            message = self._inbox.get(timeout=SECONDS)
            if isinstance(message, int):
                self.status = message
            else:
                self.messages.append(message)
        assert self.status is not None
        return self.status


@pytest.fixture
def start_worker(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Starts workers that end with the test, forked ones unless their command is given."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workers: list[Worker] = []

    def start(command: Sequence[str] = forked_python.WORKER) -> Worker:
        worker = Worker(home, command)
        workers.append(worker)
        worker.until(lambda message: isinstance(message, Ready))
        return worker

    yield start
    for worker in workers:
        worker.process.end(at_once=True)


def losses(rows: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    return {step: row["loss"] for step, row in rows.items()}


def test_trials_of_one_worker_train_together_wait_or_fail_separately(
    start_worker: Callable[..., Worker],
) -> None:
    """Some train together, some wait, some fail; each has its own messages."""
    worker = start_worker(TRAINER)
    worker.start("a", max_steps=12, eval_steps=6)
    worker.until_step("a", 1)
    worker.start("b", max_steps=5, learning_rate=1e-3, batch_size=8)
    worker.start("nonsense", batch_size=0)
    worker.start("no-data", dataset="no-such-file.jsonl")
    worker.start("longer", max_length=96, max_steps=2)
    worker.start("full", full_finetune=True, max_steps=2, batch_size=2)
    worker.start("c", max_steps=3, lora_r=32)
    ended = worker.until_ended("a", "b", "c", "nonsense", "no-data", "longer", "full")
    for name, steps in (("a", 12), ("b", 5), ("c", 3), ("longer", 2), ("full", 2)):
        done = ended[name]
        assert isinstance(done, Done), done
        assert (done.steps, done.stopped) == (steps, False)
        assert list(worker.rows(name)) == list(range(1, steps + 1))
        assert done.summary["eval/common_loss"] == worker.rows(name)[steps]["eval/common_loss"]
    causes = {name: end.cause for name, end in ended.items() if isinstance(end, Failed)}
    assert causes == {"nonsense": "bad config", "no-data": "bad data"}
    preparing = [
        message for message in worker.messages if isinstance(message, Preparing) and message.run_id == "a"
    ]
    assert preparing
    assert preparing[-1].done == preparing[-1].total
    # a, b and c trained at the same time; the others waited until they were done.
    steps = [(message.run_id, message.step) for message in worker.messages if isinstance(message, Metrics)]
    assert steps.index(("b", 1)) < steps.index(("a", 12))
    assert steps.index(("c", 1)) < steps.index(("a", 12))
    assert steps.index(("longer", 1)) > steps.index(("a", 12))
    assert steps.index(("full", 1)) > steps.index(("a", 12))
    folders = {name: worker.home.runs / name for name in ended}
    for name in ("a", "b", "c", "longer"):
        assert (folders[name] / "adapter" / "adapter_model.safetensors").exists()
    assert (folders["full"] / "model" / "model.safetensors").exists()
    loaded = {
        message.run_id: message.provenance for message in worker.messages if isinstance(message, Loaded)
    }
    assert loaded.keys() == {"a", "b", "c", "longer", "full"}
    for name in ("a", "full"):
        lineage = json.loads((folders[name] / "lineage.json").read_text())
        assert lineage["result"]["end"] == "finished"
        assert {key: lineage[key] for key in loaded[name]} == loaded[name]
        assert {key: loaded[name][key] for key in PROVENANCE} == PROVENANCE
    whole = loaded["full"]["model"]
    assert whole["trainable_parameters"] == whole["parameters"]
    assert loaded["c"]["model"]["trainable_parameters"] == 2 * loaded["a"]["model"]["trainable_parameters"]


def test_an_error_of_the_models_code_fails_each_trial_once_and_the_worker_goes_on(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    gpt2, qwen = (save(small_model(kind), tmp_path / kind) for kind in ("gpt2", "qwen2_vl"))
    config = json.loads((gpt2 / "config.json").read_text())
    (gpt2 / "config.json").write_text(json.dumps(config | {"activation_function": "no-such-function"}))
    config = json.loads((qwen / "config.json").read_text())
    config["text_config"]["rope_parameters"]["mrope_section"] = [9, 9, 9]
    (qwen / "config.json").write_text(json.dumps(config))
    worker = start_worker()
    worker.start("loading", model=str(gpt2), model_size=None)
    worker.start("forward", model=str(qwen), model_size=None)
    worker.start("good", max_steps=2)
    ended = worker.until_ended("loading", "forward", "good")
    for name, words in (
        ("loading", "no-such-function"),
        ("forward", "the model's code failed (transformers)"),
    ):
        failed = ended[name]
        assert isinstance(failed, Failed), failed
        assert failed.cause == "bad config"
        assert words in failed.message
        assert failed.hint
    assert isinstance(ended["good"], Done)
    assert worker.status is None


def test_a_stop_ends_only_its_trial_and_signals_end_none(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker()
    for name in ("s1", "s2"):
        worker.start(name, max_steps=300, eval_steps=300)
    worker.start("waiting", max_length=64)
    worker.until_step("s2", 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    worker.process.send(StopTrial("s1"))
    worker.process.send(StopTrial("waiting"))
    ended = worker.until_ended("s1", "waiting")
    for name in ("s1", "waiting"):
        done = ended[name]
        assert isinstance(done, Done)
        assert done.stopped
    stopped = ended["s1"].steps  # type: ignore[union-attr]
    assert 0 < stopped < 300
    worker.until_step("s2", max(worker.rows("s2")) + 5)
    # Started again, the trial continues from where it stopped.
    worker.start("s1", max_steps=300, eval_steps=300)
    planned = worker.until(lambda message: isinstance(message, Planned) and message.run_id == "s1")
    assert planned == Planned("s1", 300, stopped)
    worker.until_step("s1", stopped + 1)


def test_the_trials_of_a_killed_worker_continue_in_the_next_one(start_worker: Callable[..., Worker]) -> None:
    first = start_worker()
    first.start("plain1", max_steps=16, eval_steps=4)
    first.start("plain2", max_steps=16, eval_steps=4, seed=1, lora_r=8)
    first.until_ended("plain1", "plain2")
    first.start("k1", max_steps=16, eval_steps=4)
    first.start("k2", max_steps=16, eval_steps=4, seed=1, lora_r=8)
    first.until_step("k1", 11)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = start_worker()
    second.start("k1", logged=max(first.rows("k1")), max_steps=16, eval_steps=4)
    second.start("k2", logged=max(first.rows("k2")), max_steps=16, eval_steps=4, seed=1, lora_r=8)
    second.until_ended("k1", "k2")
    for name in ("1", "2"):
        before, after = first.rows(f"k{name}"), second.rows(f"k{name}")
        assert list(before) + list(after) == list(range(1, 17))
        # They continued: the checkpoint may be a step older, but the trial did not start again.
        assert any(note.startswith("resuming after step") for note in second.notes(f"k{name}"))
        assert losses(before | after) == pytest.approx(losses(first.rows(f"plain{name}")), rel=1e-4)


def test_a_worker_without_its_supervisor_saves_its_trials_and_ends(
    start_worker: Callable[..., Worker],
) -> None:
    worker = start_worker()
    worker.start("orphan", max_steps=500, eval_steps=500)
    worker.until_step("orphan", 3)
    stdin = worker.process._process.stdin
    assert stdin is not None
    stdin.close()
    assert worker.wait() == 0
    last = max(worker.rows("orphan"))
    assert (worker.home.runs / "orphan" / "checkpoint" / "last.safetensors").exists()
    successor = start_worker()
    successor.start("orphan", logged=2, max_steps=500, eval_steps=500)
    planned = successor.until(lambda message: isinstance(message, Planned))
    assert planned == Planned("orphan", 500, 2)
    successor.until_step("orphan", last + 2)
    # Rows that the first supervisor may not have logged are reported again, with the same numbers.
    repeated = {step: row for step, row in successor.rows("orphan").items() if step <= last}
    assert repeated == {step: row for step, row in worker.rows("orphan").items() if step > 2}


def test_a_worker_that_loads_a_model_exits_with_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to save, and the next agent waits for the trial's folder."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    worker = Worker(Home(tmp_path), forked_python.WORKER)
    worker.start("a")
    worker.until(lambda message: message == Preparing("a", MAKING, 0, Recipe().steps))
    assert worker.process._process.stdin is not None
    worker.process._process.stdin.close()
    assert worker.wait() == 1
    assert not (worker.home.models / Recipe().name).exists()
    with try_exclusive(worker.home.runs / "a") as free:
        assert free
