"""Who caused a failure: what is retried, which GPU is quarantined."""

import time
from dataclasses import replace

import pytest
from agent_harness import AgentHarness, FakeWorker, Grid, later

from kto_sweep.agent.retry_policy import (
    WorkerExit,
    are_isolated,
    exit_cause,
    is_hardware,
    is_retried,
    is_retried_after_exit,
    is_sick,
    retry_delay,
)
from kto_sweep.agent.state import Assignment
from kto_sweep.errors import FailureCause
from kto_sweep.protocol import Done, Metrics, Order, StartTrial


@pytest.mark.parametrize("cause", list(FailureCause))
def test_only_failures_that_may_not_happen_again_are_retried_at_most_twice(cause):
    transient = {"worker crash", "sick GPU", "disk full", "network"}
    assert [is_retried(cause, failures) for failures in (1, 2, 3)] == [cause in transient] * 2 + [False]


def test_a_trial_that_ends_a_worker_by_an_error_of_a_program_gets_one_more_attempt():
    crash, assertion = FailureCause.WORKER_CRASH, FailureCause.BAD_CONFIG
    assert [is_retried_after_exit(crash, n) for n in (1, 2, 3)] == [True, True, False]
    assert [is_retried_after_exit(assertion, n) for n in (1, 2, 3)] == [True, False, False]
    assert [are_isolated(crash, n) for n in (1, 2)] == [False, True]
    assert are_isolated(assertion, 1)


def test_network_retries_wait_longer_each_time():
    assert 0 < retry_delay(FailureCause.NETWORK, 1) < retry_delay(FailureCause.NETWORK, 2)
    assert retry_delay(FailureCause.WORKER_CRASH, 1) == 0


def test_progress_resets_the_failure_count():
    trial = Assignment("run", {}).record_failure().record_failure()
    assert trial.failures == 2
    trial = replace(trial, isolated=True).record_progress(0)
    assert (trial.failures, trial.isolated) == (2, True), "the step where it failed is no progress"
    trial = trial.record_progress(1)
    assert (trial.failures, trial.isolated) == (0, False)


@pytest.mark.parametrize(
    ("output", "cause", "hardware"),
    [
        ("AcceleratorError: CUDA error: an illegal memory access was encountered", "sick GPU", False),
        ("CUDA error: uncorrectable ECC error encountered", "sick GPU", True),
        ("RuntimeError: No CUDA-capable device is detected", "sick GPU", True),
        ("RuntimeError: CUDA driver error: unspecified launch failure", "sick GPU", False),
        ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", "sick GPU", False),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "sick GPU", False),
        ("RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED", "sick GPU", False),
        ("RuntimeError: No CUDA GPUs are available", "sick GPU", False),
        ("CUDA error: GPU is lost", "sick GPU", True),
        ("AcceleratorError: CUDA error: device-side assert triggered", "bad config", False),
        ("ValueError: something of ours", "worker crash", False),
        ("", "worker crash", False),
    ],
)
def test_the_cause_of_an_exit_is_in_the_workers_last_output(output, cause, hardware):
    assert (exit_cause(output), is_hardware(output)) == (cause, hardware)


def exits(*running: str, device: str = "gpu 0", hardware: bool = False) -> list[WorkerExit]:
    return [WorkerExit(device, frozenset(names.split()), hardware) for names in running]


def test_two_exits_are_enough_if_there_is_another_gpu():
    assert not is_sick("gpu 0", exits("a b"), (), others=True)
    assert is_sick("gpu 0", exits("a b", "a b"), (), others=True)
    assert not is_sick("gpu 1", exits("a b", "a b"), (), others=True)


def test_exits_caused_by_a_culprit_do_not_count_against_the_gpu():
    assert not is_sick("gpu 0", exits("a b", "a b", "c"), {"a"}, others=True)


def test_the_last_gpu_is_given_up_for_a_hardware_error_or_when_trials_keep_dying_on_it_alone():
    assert not is_sick("gpu 0", exits("a", "a", "a"), {"a"}, others=False), "one trial is to blame"
    assert is_sick("gpu 0", exits("a", "a", "a", "b", "b"), {"a"}, others=False)
    assert not is_sick("gpu 0", exits("a b", hardware=True), (), others=False)
    assert is_sick("gpu 0", exits("a b", "a b", hardware=True), (), others=False)


class Deadly:
    """Kills the worker whenever it trains `cell1`; other trials only progress without `cell1`."""

    def __init__(self, *, progress: bool) -> None:
        self._progress = progress
        self._exits = 0
        self._running: dict[FakeWorker, set[str]] = {}

    def on_order(self, worker: FakeWorker, order: Order) -> None:
        if not isinstance(order, StartTrial):
            return
        running = self._running.setdefault(worker, set())
        running.add(order.run_id)
        if order.run_id != "cell1":
            due = time.monotonic() + 0.2
            later(lambda: time.monotonic() > due, lambda: self._progress_alone(worker, order.run_id))
        elif self._progress and self._exits == 6:
            worker.say(Done("cell1", {}, steps=7, stopped=False))
            running.remove("cell1")
        else:
            self._exits += 1
            if self._progress:
                worker.say(Metrics("cell1", self._exits, {"loss": 0.5}))
            worker.die(-9)

    def _progress_alone(self, worker: FakeWorker, run_id: str) -> None:
        if "cell1" not in self._running[worker]:
            worker.say(Metrics(run_id, 1, {"loss": 0.5}))
            due = time.monotonic() + 0.2
            later(lambda: time.monotonic() > due, lambda: self._end(worker, run_id))

    def _end(self, worker: FakeWorker, run_id: str) -> None:
        if "cell1" not in self._running[worker]:
            worker.say(Done(run_id, {}, steps=1, stopped=False))


@pytest.mark.parametrize("progress", [False, True])
def test_a_trial_fails_only_if_it_ran_alone_when_the_worker_died(harness: AgentHarness, progress: bool):
    harness.on_order = Deadly(progress=progress).on_order
    grid = Grid(3)
    grid.sent = dict.fromkeys(grid.sent, 2)  # each is sent once more
    harness.beat = grid.beat
    harness.perform(slots=3)
    expected = {"cell0": "finished", "cell1": "finished" if progress else "failed", "cell2": "finished"}
    assert dict(harness.ends) == expected, harness.said()
    assert len(harness.ends) == 3
