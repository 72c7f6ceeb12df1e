"""Finds the number of trials that are worth training at once on one device. Pure.

Each number is measured by tokens per second; it is doubled while more trials fit and make all of them faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from kto_sweep.train.device import Memory

MAX_TRIALS = 64
"""The most trials that one worker trains at once."""
SETTLING = 3
"""Steps after a trial joins or leaves that are not measured: kernels are chosen, memory is rearranged."""
WINDOW = 12
"""Steps in a measurement."""
MIN_GAIN = 0.05
"""What doubling the number of trials must gain, as a share of the throughput.

A step costs a fixed part (kernel launches, the host) and a part in proportion to its tokens. By that model,
where doubling gains 5 %, less than 10 % is left to gain in all, and each trial takes nearly twice as long:
its evaluations, on which early stopping and the search wait, come that much later.
"""
MEMORY_SHARE = 0.9
"""Share of the memory that is planned for: the rest is for fragmentation and for longer batches."""
OUTLIER = 3.0
"""A step of more than this many times the median was interrupted, and is not measured."""


@dataclass(frozen=True)
class Concurrency:
    """The number of trials to train at once."""

    slots: int
    reason: str
    """For people; empty before the first measurement."""


@dataclass
class _Window:
    """Steps with the same number of trials."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Tokens per second, without interrupted steps."""
        longest = OUTLIER * sorted(self.seconds)[len(self.seconds) // 2]
        kept = [pair for pair in zip(self.tokens, self.seconds, strict=True) if pair[1] <= longest]
        return sum(tokens for tokens, _ in kept) / max(sum(seconds for _, seconds in kept), 1e-9)


class ConcurrencyTuner:
    """Doubles the number of trials until memory is full, or doubling gains less than MIN_GAIN.

    Then it returns to the last number that was worth it, and stays there. `empty`: the process's memory
    without a trial, GiB.
    """

    def __init__(self, slots: int = 1, empty: float = 0.0) -> None:
        self.concurrency = Concurrency(slots, "")
        self.empty = empty
        self._settled = False
        self._rates: dict[int, float] = {}
        """Tokens per second of all trials together, by their number."""
        self._active = 0
        self._since = 0
        """Steps since a trial joined or left."""
        self._window = _Window()

    def add_step(self, active: int, tokens: int, seconds: float, memory: Callable[[], Memory]) -> None:
        """Measure a step of `active` trials. `seconds`: without evaluations, checkpoints and waiting."""
        if self._settled or active < self.concurrency.slots:
            self._active = active
            return
        if active > self.concurrency.slots:  # this worker took over the trials of another one
            self.concurrency = Concurrency(active, "")
            self._window = _Window()
        if active != self._active:
            self._active, self._since = active, 0
        self._since += 1
        if self._since <= SETTLING:
            return
        self._window.tokens.append(tokens)
        self._window.seconds.append(seconds)
        if len(self._window.tokens) == WINDOW:
            self._rates[active], self._window = self._window.rate(), _Window()
            self._decide(active, memory())

    def on_out_of_memory(self, fitting: int) -> None:
        """Settle: `fitting` trials are left, and more than were measured before do not fit."""
        measured = [slots for slots in self._rates if slots < self.concurrency.slots and not self._settled]
        slots = max(1, min(fitting, max(measured, default=self.concurrency.slots)))
        if not self._settled or slots < self.concurrency.slots:
            self._settle(slots, f"memory ran out with {self.concurrency.slots}")

    def _decide(self, slots: int, memory: Memory) -> None:
        before = max((fewer for fewer in self._rates if fewer < slots), default=None)
        gain = 0.0
        if before is not None:
            gain = self._rates[slots] / self._rates[before] - 1
            # Where memory did not allow for twice as many, a smaller gain is enough.
            if gain < MIN_GAIN * (slots / before - 1):
                more = slots - before
                self._settle(before, f"{more} more would add {_percent(max(gain, 0.0))} throughput")
                return
        wanted = min(2 * slots, self._fitting(slots, memory))
        if wanted <= slots:
            self._settle(slots, self._limit(slots, memory))
        elif before is None:
            self.concurrency = Concurrency(wanted, f"trying {_trials(wanted)} at once")
        else:
            reason = f"{slots} in place of {before} added {_percent(gain)} throughput"
            self.concurrency = Concurrency(wanted, f"{_trials(wanted)} at once: {reason}")

    def _settle(self, slots: int, reason: str) -> None:
        self._settled = True
        self.concurrency = Concurrency(slots, f"{_trials(slots)} at once: {reason}")

    def _per_trial(self, slots: int, memory: Memory) -> float:
        """GiB of one more trial, at most: the peak without the base model, shared by all trials."""
        return max(memory.peak - self.empty, 0.0) / slots

    def _fitting(self, slots: int, memory: Memory) -> int:
        per_trial = self._per_trial(slots, memory)
        left = MEMORY_SHARE * memory.limit - memory.peak
        return min(MAX_TRIALS, slots + int(max(left, 0.0) / per_trial)) if per_trial else MAX_TRIALS

    def _limit(self, slots: int, memory: Memory) -> str:
        if slots >= MAX_TRIALS:
            return "the most that one worker trains"
        needed = memory.peak + self._per_trial(slots, memory)
        return f"one more would need {needed:.1f} of {memory.limit:.1f} GiB"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"
