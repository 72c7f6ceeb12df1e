"""Whose fault it is: what is tried again, which GPU is used no more."""

import time

import pytest
from stage import Grid, Stage, later
from stage import Worker as StandIn

from kto_sweep.agent.blame import Death, cause_of_death, is_hardware, is_retried, is_sick, pause
from kto_sweep.agent.slots import Work
from kto_sweep.errors import FailureCause
from kto_sweep.protocol import Done, Metrics, Order, StartTrial


@pytest.mark.parametrize("cause", list(FailureCause))
def test_only_what_is_not_the_trials_own_fault_is_tried_again_and_twice_at_most(cause):
    not_its_own = {"worker crash", "sick GPU", "disk full", "network"}
    assert [is_retried(cause, failures) for failures in (1, 2, 3)] == [cause in not_its_own] * 2 + [False]


def test_a_trial_without_network_waits_longer_each_time():
    assert 0 < pause(FailureCause.NETWORK, 1) < pause(FailureCause.NETWORK, 2)
    assert pause(FailureCause.WORKER_CRASH, 1) == 0


def test_failures_count_anew_once_a_trial_got_further():
    work = Work("run", {})
    assert [work.fail_here(), work.fail_here()] == [1, 2]
    work.suspect = True
    work.passed(0)
    assert (work.failures, work.suspect) == (2, True), "the step where it failed is no progress"
    work.passed(1)
    assert (work.failures, work.suspect) == (0, False)


@pytest.mark.parametrize(
    ("words", "cause", "hardware"),
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
        ("ValueError: something of ours", "worker crash", False),
        ("", "worker crash", False),
    ],
)
def test_a_worker_is_judged_by_its_last_words(words, cause, hardware):
    assert (cause_of_death(words), is_hardware(words)) == (cause, hardware)


def deaths(*aboard: str, device: str = "gpu 0", hardware: bool = False) -> list[Death]:
    return [Death(device, frozenset(names.split()), hardware) for names in aboard]


def test_two_deaths_are_enough_where_there_is_another_gpu():
    assert not is_sick("gpu 0", deaths("a b"), (), others=True)
    assert is_sick("gpu 0", deaths("a b", "a b"), (), others=True)
    assert not is_sick("gpu 1", deaths("a b", "a b"), (), others=True)


def test_deaths_of_a_culprit_are_not_the_gpus_fault():
    assert not is_sick("gpu 0", deaths("a b", "a b", "c"), {"a"}, others=True)


def test_the_last_gpu_is_given_up_for_its_own_words_or_when_trial_after_trial_dies_on_it_alone():
    assert not is_sick("gpu 0", deaths("a", "a", "a"), {"a"}, others=False), "one trial is to blame"
    assert is_sick("gpu 0", deaths("a", "a", "a", "b", "b"), {"a"}, others=False)
    assert not is_sick("gpu 0", deaths("a b", hardware=True), (), others=False)
    assert is_sick("gpu 0", deaths("a b", "a b", hardware=True), (), others=False)


class Deadly:
    """Has the worker die whenever it has the trial `cell1`; another trial gets on only without that one."""

    def __init__(self, *, progress: bool) -> None:
        self._progress = progress
        self._lives = 0
        self._aboard: dict[StandIn, set[str]] = {}

    def on_order(self, worker: StandIn, order: Order) -> None:
        if not isinstance(order, StartTrial):
            return
        aboard = self._aboard.setdefault(worker, set())
        aboard.add(order.run_id)
        if order.run_id != "cell1":
            due = time.monotonic() + 0.2
            later(lambda: time.monotonic() > due, lambda: self._get_on(worker, order.run_id))
        elif self._progress and self._lives == 6:
            worker.say(Done("cell1", {}, steps=7, stopped=False))
            aboard.remove("cell1")
        else:
            self._lives += 1
            if self._progress:
                worker.say(Metrics("cell1", self._lives, {"loss": 0.5}))
            worker.die(-9)

    def _get_on(self, worker: StandIn, run_id: str) -> None:
        if "cell1" not in self._aboard[worker]:
            worker.say(Metrics(run_id, 1, {"loss": 0.5}))
            due = time.monotonic() + 0.2
            later(lambda: time.monotonic() > due, lambda: self._end(worker, run_id))

    def _end(self, worker: StandIn, run_id: str) -> None:
        if "cell1" not in self._aboard[worker]:
            worker.say(Done(run_id, {}, steps=1, stopped=False))


@pytest.mark.parametrize("progress", [False, True])
def test_a_trial_fails_only_if_it_was_alone_when_the_worker_died(stage: Stage, progress: bool):
    stage.on_order = Deadly(progress=progress).on_order
    grid = Grid(3)
    grid.handed_out = dict.fromkeys(grid.handed_out, 2)  # each is handed out once more
    stage.beat = grid.beat
    stage.perform(trials_per_device=3)
    expected = {"cell0": "finished", "cell1": "finished" if progress else "failed", "cell2": "finished"}
    assert dict(stage.ends) == expected, stage.said()
    assert len(stage.ends) == 3
