"""Whose fault it is: what is tried again, which GPU is used no more."""

import pytest

from kto_sweep.agent.blame import Death, cause_of_death, is_hardware, is_retried, is_sick, pause
from kto_sweep.agent.slots import Work
from kto_sweep.errors import FailureCause


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
