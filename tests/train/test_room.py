"""How many trials at once: made-up steps on made-up devices."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kto_sweep.train.room import INTERRUPTED, MOST, SETTLING, WINDOW, Growth, Memory, Room


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

    def step(self, growth: Growth, seated: int, slower: float = 1.0) -> None:
        self.most = max(self.most, seated)
        growth.see(seated, 1000 * seated, slower * (self.fixed + self.each * seated), self.memory)

    def measure(self, growth: Growth, seated: int) -> None:
        for _ in range(SETTLING + WINDOW):
            self.step(growth, seated)

    def grow(self, growth: Growth) -> list[int]:
        """The numbers of trials on the way, the last one included."""
        way = [growth.room.slots]
        while len(way) < 20:
            self.measure(growth, growth.room.slots)
            if growth.room.slots == way[-1]:
                break
            way.append(growth.room.slots)
        return way


def test_it_doubles_until_twice_as_many_gain_too_little() -> None:
    """With a + bK seconds a step, 2K trials gain a / (a + 2bK) over K."""
    growth = Growth(empty=10)
    assert Device(fixed=0.1, each=0.01).grow(growth) == [1, 2, 4, 8, 16, 32, 64]
    assert growth.room == Room(64, "64 trials at once: the most that one worker trains")
    assert MOST == 64
    growth = Growth(empty=10)
    assert Device(fixed=0.1, each=0.1).grow(growth) == [1, 2, 4, 8, 16, 32, 16]
    assert growth.room == Room(16, "16 trials at once: 16 more would add 3 % throughput")


def test_a_device_that_one_trial_fills_has_one() -> None:
    growth = Growth(empty=10)
    assert Device(fixed=0.0, each=0.1).grow(growth) == [1, 2, 1]
    assert growth.room.reason == "1 trial at once: 1 more would add 0 % throughput"
    growth = Growth(empty=10)
    slower = Device(fixed=0.0, each=0.1)
    slower.measure(growth, 1)
    slower.each = 0.12
    slower.measure(growth, 2)
    assert growth.room.reason == "1 trial at once: 1 more would add 0 % throughput"


@pytest.mark.parametrize(
    ("total", "way", "reason"),
    [
        (13.0, [1], "1 trial at once: one more would need 14.0 of 13.0 GiB"),
        (20.0, [1, 2, 4], "4 trials at once: one more would need 20.0 of 20.0 GiB"),
        (27.0, [1, 2, 4, 7], "7 trials at once: one more would need 26.0 of 27.0 GiB"),
    ],
)
def test_it_stops_where_memory_ends(total: float, way: list[int], reason: str) -> None:
    growth = Growth(empty=10)
    assert Device(total=total).grow(growth) == way
    assert growth.room.reason == reason


def test_a_cost_that_all_share_is_not_forgotten() -> None:
    """Per trial it counts too much rather than too little, and less the more trials there are."""
    growth = Growth(empty=10)
    device = Device(base=14, trial=1, total=30)
    assert device.grow(growth) == [1, 2, 4, 8, 11, 12]
    assert device.memory().peak <= 0.9 * 30


def test_only_steps_of_all_count_and_not_the_first_after_a_change() -> None:
    device, growth = Device(), Growth(empty=10)
    device.measure(growth, 1)
    assert growth.room.slots == 2
    for _ in range(WINDOW):  # one of two trials is always new: nothing is settled
        for _ in range(SETTLING):
            device.step(growth, 2)
        device.step(growth, 1)
    assert growth.room.slots == 2
    for _ in range(WINDOW):  # in pieces is as good as at once
        for _ in range(SETTLING + 1):
            device.step(growth, 2)
        device.step(growth, 1)
    assert growth.room.slots == 4


def test_an_interrupted_step_does_not_count() -> None:
    device, growth = Device(fixed=0, each=0.1), Growth(empty=10)
    for _ in range(SETTLING + WINDOW - 1):
        device.step(growth, 1)
    device.step(growth, 1, slower=2 * INTERRUPTED)  # else two trials would seem to gain much
    device.measure(growth, 2)
    assert growth.room.slots == 1


def test_more_trials_than_asked_for_are_where_it_goes_on() -> None:
    growth = Growth(empty=10)
    Device().measure(growth, 4)
    assert growth.room.slots == 8


def test_where_memory_ran_out_it_goes_back_and_grows_no_more() -> None:
    device, growth = Device(), Growth(empty=10)
    for seated in (1, 2):
        device.measure(growth, seated)
    growth.press(4)
    assert growth.room == Room(2, "2 trials at once: memory ran out with 4")
    device.measure(growth, 2)
    assert growth.room.slots == 2
    growth.press(2)
    assert growth.room == Room(2, "2 trials at once: memory ran out with 4")
    growth.press(1)
    assert growth.room.slots == 1


@pytest.mark.parametrize("start", [1, 8])
def test_memory_may_run_out_before_anything_is_known(start: int) -> None:
    growth = Growth(start)
    growth.press(start)
    assert growth.room.slots == start
    growth.press(0)
    assert growth.room.slots == 1


def test_known_numbers_are_where_other_trials_begin() -> None:
    growth = Growth(8, empty=10)
    assert Device(fixed=0.1, each=0.02).grow(growth) == [8, 16, 32, 64]
    read: Callable[[], Memory] = Device().memory
    growth.see(64, 1, 1.0, read)
    assert growth.room.slots == 64
