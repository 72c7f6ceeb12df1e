"""How many trials at once: made-up steps on made-up devices."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

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
    """A step of K trials takes `fixed` seconds, and `each` for each trial; memory in GiB likewise."""

    fixed: float = 0.1
    each: float = 0.01
    base: float = 10.0
    trial: float = 2.0
    total: float = 1000.0
    most: int = 0
    """Trials that were there at once."""

    def memory(self) -> Memory:
        return Memory(self.base, self.base + self.trial * self.most, self.total)

    def step(self, tuner: ConcurrencyTuner, active: int, slower: float = 1.0) -> None:
        self.most = max(self.most, active)
        tuner.add_step(active, 1000 * active, slower * (self.fixed + self.each * active), self.memory)

    def measure(self, tuner: ConcurrencyTuner, active: int) -> None:
        for _ in range(SETTLING + WINDOW):
            self.step(tuner, active)

    def grow(self, tuner: ConcurrencyTuner) -> list[int]:
        """The numbers of trials on the way, the last one included."""
        way = [tuner.concurrency.slots]
        while len(way) < 20:
            self.measure(tuner, tuner.concurrency.slots)
            if tuner.concurrency.slots == way[-1]:
                break
            way.append(tuner.concurrency.slots)
        return way


def test_it_doubles_until_twice_as_many_gain_too_little() -> None:
    """With a + bK seconds a step, 2K trials gain a / (a + 2bK) over K."""
    tuner = ConcurrencyTuner(empty=10)
    assert Device(fixed=0.1, each=0.01).grow(tuner) == [1, 2, 4, 8, 16, 32, 64]
    assert tuner.concurrency == Concurrency(64, "64 trials at once: the most that one worker trains")
    assert MAX_TRIALS == 64
    tuner = ConcurrencyTuner(empty=10)
    assert Device(fixed=0.1, each=0.1).grow(tuner) == [1, 2, 4, 8, 16, 32, 16]
    assert tuner.concurrency == Concurrency(16, "16 trials at once: 16 more would add 3 % throughput")


def test_a_device_that_one_trial_fills_has_one() -> None:
    tuner = ConcurrencyTuner(empty=10)
    assert Device(fixed=0.0, each=0.1).grow(tuner) == [1, 2, 1]
    assert tuner.concurrency.reason == "1 trial at once: 1 more would add 0 % throughput"
    tuner = ConcurrencyTuner(empty=10)
    slower = Device(fixed=0.0, each=0.1)
    slower.measure(tuner, 1)
    slower.each = 0.12
    slower.measure(tuner, 2)
    assert tuner.concurrency.reason == "1 trial at once: 1 more would add 0 % throughput"


@pytest.mark.parametrize(
    ("total", "way", "reason"),
    [
        (13.0, [1], "1 trial at once: one more would need 14.0 of 13.0 GiB"),
        (20.0, [1, 2, 4], "4 trials at once: one more would need 20.0 of 20.0 GiB"),
        (27.0, [1, 2, 4, 7], "7 trials at once: one more would need 26.0 of 27.0 GiB"),
    ],
)
def test_it_stops_where_memory_ends(total: float, way: list[int], reason: str) -> None:
    tuner = ConcurrencyTuner(empty=10)
    assert Device(total=total).grow(tuner) == way
    assert tuner.concurrency.reason == reason


def test_a_cost_that_all_share_is_not_forgotten() -> None:
    """Per trial it counts too much rather than too little, and less the more trials there are."""
    tuner = ConcurrencyTuner(empty=10)
    device = Device(base=14, trial=1, total=30)
    assert device.grow(tuner) == [1, 2, 4, 8, 11, 12]
    assert device.memory().peak <= 0.9 * 30


def test_only_steps_of_all_count_and_not_the_first_after_a_change() -> None:
    device, tuner = Device(), ConcurrencyTuner(empty=10)
    device.measure(tuner, 1)
    assert tuner.concurrency.slots == 2
    for _ in range(WINDOW):  # one of two trials is always new: nothing is settled
        for _ in range(SETTLING):
            device.step(tuner, 2)
        device.step(tuner, 1)
    assert tuner.concurrency.slots == 2
    for _ in range(WINDOW):  # in pieces is as good as at once
        for _ in range(SETTLING + 1):
            device.step(tuner, 2)
        device.step(tuner, 1)
    assert tuner.concurrency.slots == 4


def test_an_interrupted_step_does_not_count() -> None:
    device, tuner = Device(fixed=0, each=0.1), ConcurrencyTuner(empty=10)
    for _ in range(SETTLING + WINDOW - 1):
        device.step(tuner, 1)
    device.step(tuner, 1, slower=2 * OUTLIER)  # else two trials would seem to gain much
    device.measure(tuner, 2)
    assert tuner.concurrency.slots == 1


def test_more_trials_than_asked_for_are_where_it_goes_on() -> None:
    tuner = ConcurrencyTuner(empty=10)
    Device().measure(tuner, 4)
    assert tuner.concurrency.slots == 8


def test_where_memory_ran_out_it_goes_back_and_grows_no_more() -> None:
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
def test_memory_may_run_out_before_anything_is_known(start: int) -> None:
    tuner = ConcurrencyTuner(start)
    tuner.on_out_of_memory(start)
    assert tuner.concurrency.slots == start
    tuner.on_out_of_memory(0)
    assert tuner.concurrency.slots == 1


def test_known_numbers_are_where_other_trials_begin() -> None:
    tuner = ConcurrencyTuner(8, empty=10)
    assert Device(fixed=0.1, each=0.02).grow(tuner) == [8, 16, 32, 64]
    read: Callable[[], Memory] = Device().memory
    tuner.add_step(64, 1, 1.0, read)
    assert tuner.concurrency.slots == 64
