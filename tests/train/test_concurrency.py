"""How many trials train at once: simulated steps on simulated devices."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kto_sweep.models.architecture import Recompute
from kto_sweep.train.worker.concurrency import (
    MAX_TRIALS,
    OUTLIER,
    SETTLING,
    WINDOW,
    Concurrency,
    ConcurrencyTuner,
    Memory,
)


@dataclass
class Device:
    """A step of K trials takes `fixed` + K * `per_trial` seconds and needs `base` + K * `trial` GiB."""

    fixed: float = 0.1
    per_trial: float = 0.01
    base: float = 10.0
    trial: float = 2.0
    total: float = 1000.0
    recompute: tuple[float, float] = (0.5, 1.1)
    """Memory and time of a trial whose MLPs are computed again, as shares."""
    peak_trials: int = 0
    """The most trials that have trained at once, since what is computed again has changed."""
    level: Recompute = Recompute.NOTHING

    def memory(self) -> Memory:
        trial = self.trial * (self.recompute[0] if self.level else 1)
        return Memory(self.base, self.base + trial * self.peak_trials, self.total)

    def step(self, tuner: ConcurrencyTuner, active: int, slower: float = 1.0) -> None:
        if self.level is not tuner.concurrency.recompute:
            self.level, self.peak_trials = tuner.concurrency.recompute, 0
        if self.level:
            slower *= self.recompute[1]
        self.peak_trials = max(self.peak_trials, active)
        tuner.add_step(active, 1000 * active, slower * (self.fixed + self.per_trial * active), self.memory)

    def measure(self, tuner: ConcurrencyTuner, active: int) -> None:
        for _ in range(SETTLING + WINDOW):
            self.step(tuner, active)

    def grow(self, tuner: ConcurrencyTuner) -> list[int]:
        """The number of trials after each measurement, until it does not change."""
        counts = [tuner.concurrency.slots]
        while len(counts) < 20:
            before = tuner.concurrency
            self.measure(tuner, before.slots)
            if (before.slots, before.recompute) == (tuner.concurrency.slots, tuner.concurrency.recompute):
                break
            counts.append(tuner.concurrency.slots)
        return counts


def test_trials_double_until_the_gain_is_too_small() -> None:
    """With a + bK seconds a step, 2K trials gain a / (a + 2bK) over K."""
    tuner = ConcurrencyTuner(empty=10)
    assert Device(fixed=0.1, per_trial=0.01).grow(tuner) == [1, 2, 4, 8, 16, 32, 64]
    assert tuner.concurrency == Concurrency(64, "64 trials at once: the most that one worker trains")
    assert MAX_TRIALS == 64
    tuner = ConcurrencyTuner(empty=10)
    assert Device(fixed=0.1, per_trial=0.1).grow(tuner) == [1, 2, 4, 8, 16, 32, 16]
    assert tuner.concurrency == Concurrency(16, "16 trials at once: 16 more would add 3 % throughput")


def test_a_device_that_one_trial_fills_trains_one() -> None:
    tuner = ConcurrencyTuner(empty=10)
    assert Device(fixed=0.0, per_trial=0.1).grow(tuner) == [1, 2, 1]
    assert tuner.concurrency.reason == "1 trial at once: 1 more would add 0 % throughput"
    tuner = ConcurrencyTuner(empty=10)
    device = Device(fixed=0.0, per_trial=0.1)
    device.measure(tuner, 1)
    device.per_trial = 0.12
    device.measure(tuner, 2)
    assert tuner.concurrency.reason == "1 trial at once: 1 more would add 0 % throughput"


@pytest.mark.parametrize(
    ("total", "counts", "reason"),
    [
        (13.0, [1], "1 trial at once: one more would need 14.0 of 13.0 GiB"),
        (20.0, [1, 2, 4], "4 trials at once: one more would need 20.0 of 20.0 GiB"),
        (27.0, [1, 2, 4, 7], "7 trials at once: one more would need 26.0 of 27.0 GiB"),
    ],
)
def test_trials_increase_up_to_the_memory_limit(total: float, counts: list[int], reason: str) -> None:
    tuner = ConcurrencyTuner(empty=10)
    assert Device(total=total).grow(tuner) == counts
    assert tuner.concurrency.reason == reason


def test_memory_that_trials_share_is_counted() -> None:
    """It makes the estimate per trial too high, never too low, and less so with more trials."""
    tuner = ConcurrencyTuner(empty=10)
    device = Device(base=14, trial=1, total=30)
    assert device.grow(tuner) == [1, 2, 4, 8, 11, 12]
    assert device.memory().peak <= 0.9 * 30


def test_only_steps_of_all_trials_count_and_not_the_first_after_a_change() -> None:
    device, tuner = Device(), ConcurrencyTuner(empty=10)
    device.measure(tuner, 1)
    assert tuner.concurrency.slots == 2
    for _ in range(WINDOW):  # one of two trials is always new: nothing settles
        for _ in range(SETTLING):
            device.step(tuner, 2)
        device.step(tuner, 1)
    assert tuner.concurrency.slots == 2
    for _ in range(WINDOW):  # steps in several parts add up to a window
        for _ in range(SETTLING + 1):
            device.step(tuner, 2)
        device.step(tuner, 1)
    assert tuner.concurrency.slots == 4


def test_a_step_that_takes_far_too_long_does_not_count() -> None:
    device, tuner = Device(fixed=0, per_trial=0.1), ConcurrencyTuner(empty=10)
    for _ in range(SETTLING + WINDOW - 1):
        device.step(tuner, 1)
    device.step(tuner, 1, slower=2 * OUTLIER)  # otherwise two trials would seem to gain much
    device.measure(tuner, 2)
    assert tuner.concurrency.slots == 1


def test_more_trials_than_requested_are_the_new_start() -> None:
    tuner = ConcurrencyTuner(empty=10)
    Device().measure(tuner, 4)
    assert tuner.concurrency.slots == 8


def test_after_running_out_of_memory_trials_decrease_and_stay_there() -> None:
    device, tuner = Device(), ConcurrencyTuner(empty=10)
    for active in (1, 2):
        device.measure(tuner, active)
    tuner.on_out_of_memory(4)
    assert tuner.concurrency == Concurrency(2, "2 trials at once: memory ran out with 4")
    device.measure(tuner, 2)
    assert tuner.concurrency.slots == 2
    tuner.on_out_of_memory(2)
    assert tuner.concurrency == Concurrency(2, "2 trials at once: memory ran out with 4")
    tuner.on_out_of_memory(1)
    assert tuner.concurrency.slots == 1


@pytest.mark.parametrize("start", [1, 8])
def test_memory_may_run_out_before_the_first_measurement(start: int) -> None:
    tuner = ConcurrencyTuner(start)
    tuner.on_out_of_memory(start)
    assert tuner.concurrency.slots == start
    tuner.on_out_of_memory(0)
    assert tuner.concurrency.slots == 1


def test_tuning_starts_from_a_given_number_of_trials() -> None:
    tuner = ConcurrencyTuner(8, empty=10)
    assert Device(fixed=0.1, per_trial=0.02).grow(tuner) == [8, 16, 32, 64]
    read: Callable[[], Memory] = Device().memory
    tuner.add_step(64, 1, 1.0, read)
    assert tuner.concurrency.slots == 64


LEVELS = (Recompute.NOTHING, Recompute.MLP)


def test_where_memory_is_the_limit_more_trials_that_recompute_are_tried_and_kept_if_faster() -> None:
    # 4 GiB hold 2 trials, or 4 that take a tenth longer; 2 trials take 0.12 s, 4 take 0.154.
    tuner = ConcurrencyTuner(empty=10, levels=LEVELS)
    assert Device(total=16, recompute=(0.5, 1.1)).grow(tuner) == [1, 2, 2, 4]
    assert tuner.concurrency.recompute is Recompute.MLP
    assert "one more would need" in tuner.concurrency.reason
    assert "recomputed" in tuner.concurrency.reason


def test_recomputing_that_does_not_pay_is_given_up() -> None:
    tuner = ConcurrencyTuner(empty=10, levels=LEVELS)
    assert Device(total=16, recompute=(0.5, 2.0)).grow(tuner) == [1, 2, 2, 4, 2]
    assert tuner.concurrency.recompute is Recompute.NOTHING
    assert tuner.concurrency.reason.startswith("2 trials at once: 4 trials, and the MLPs' gate and up")


def test_without_a_limit_by_memory_nothing_is_computed_again() -> None:
    tuner = ConcurrencyTuner(empty=10, levels=LEVELS)
    Device(fixed=0.1, per_trial=0.1).grow(tuner)
    assert tuner.concurrency == Concurrency(16, tuner.concurrency.reason, Recompute.NOTHING)
