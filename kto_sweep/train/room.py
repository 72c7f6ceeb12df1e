"""How many trials at once a device is worth: as many as fit, and as still make all together faster. Pure.

steps with K trials --> tokens per second, memory --> K is doubled | the doubling was worth it | it was not
"""

from collections.abc import Callable
from dataclasses import dataclass, field

MOST = 64
"""Trials that one worker trains at once at most."""
SETTLING = 3
"""Steps after a trial came or went that do not count: kernels are chosen, memory is laid out anew."""
WINDOW = 12
"""Steps that make a measurement."""
WORTH = 0.05
"""What twice as many trials must gain to be worth it, as a share of the throughput.

A step costs a part that does not depend on the tokens (kernel launches, the host) and a part in proportion to
them. By that model, where doubling gains 5 %, less than 10 % is left to gain in all, and each trial would
take nearly twice as long: its evaluations, on which early stopping and the search wait, come that much later.
"""
SHARE = 0.9
"""Of the memory: the rest is for what fragments it and for batches longer than those seen."""
INTERRUPTED = 3.0
"""A step that took this many times the median was interrupted, and does not count."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process on its device, GiB."""

    used: float
    """Now."""
    peak: float
    """Most so far."""
    limit: float
    """What the process could use in all."""


@dataclass(frozen=True)
class Room:
    """How many trials are to be trained at once, and why."""

    slots: int
    reason: str
    """For people: empty while nothing has been found out."""


@dataclass
class _Window:
    """Steps with the same number of trials."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Tokens per second, without the steps that were interrupted."""
        longest = INTERRUPTED * sorted(self.seconds)[len(self.seconds) // 2]
        kept = [pair for pair in zip(self.tokens, self.seconds, strict=True) if pair[1] <= longest]
        return sum(tokens for tokens, _ in kept) / max(sum(seconds for _, seconds in kept), 1e-9)


class Growth:
    """Finds the number of trials that are worth training at once on one base model and its data.

    Told of every step (`see`), it doubles the number until no more would fit in memory, or twice as many did
    not make all of them together faster by WORTH; then it goes back to the last number that was worth it
    and stays there. `empty`: the process's memory without a trial, GiB.
    """

    def __init__(self, slots: int = 1, empty: float = 0.0) -> None:
        self.room = Room(slots, "")
        self.empty = empty
        self._settled = False
        self._rates: dict[int, float] = {}
        """Tokens per second of all together, by the number of trials."""
        self._seated = 0
        self._since = 0
        """Steps since a trial came or went."""
        self._window = _Window()

    def see(self, seated: int, tokens: int, seconds: float, memory: Callable[[], Memory]) -> None:
        """Take note of a step of `seated` trials, free of evaluations, checkpoints and waiting."""
        if self._settled or seated < self.room.slots:
            self._seated = seated
            return
        if seated > self.room.slots:  # a worker that took over the trials of another
            self.room = Room(seated, "")
            self._window = _Window()
        if seated != self._seated:
            self._seated, self._since = seated, 0
        self._since += 1
        if self._since <= SETTLING:
            return
        self._window.tokens.append(tokens)
        self._window.seconds.append(seconds)
        if len(self._window.tokens) == WINDOW:
            self._rates[seated], self._window = self._window.rate(), _Window()
            self._decide(seated, memory())

    def press(self, fitting: int) -> None:
        """Memory ran out, and `fitting` trials are left: there will be no more than were known to fit."""
        known = [slots for slots in self._rates if slots < self.room.slots and not self._settled]
        slots = max(1, min(fitting, max(known, default=self.room.slots)))
        if not self._settled or slots < self.room.slots:
            self._settle(slots, f"memory ran out with {self.room.slots}")

    def _decide(self, slots: int, memory: Memory) -> None:
        before = max((fewer for fewer in self._rates if fewer < slots), default=None)
        gain = 0.0
        if before is not None:
            gain = self._rates[slots] / self._rates[before] - 1
            if gain < WORTH * (slots / before - 1):
                more = slots - before
                self._settle(before, f"{more} more would add {_percent(max(gain, 0.0))} throughput")
                return
        wanted = min(2 * slots, self._fitting(slots, memory))
        if wanted <= slots:
            self._settle(slots, self._limit(slots, memory))
        elif before is None:
            self.room = Room(wanted, f"trying {_trials(wanted)} at once")
        else:
            found = f"{slots} in place of {before} added {_percent(gain)} throughput"
            self.room = Room(wanted, f"{_trials(wanted)} at once: {found}")

    def _settle(self, slots: int, reason: str) -> None:
        self._settled = True
        self.room = Room(slots, f"{_trials(slots)} at once: {reason}")

    def _each(self, slots: int, memory: Memory) -> float:
        """GiB of one more trial, not too few: its share of all that was ever used beside the base model."""
        return max(memory.peak - self.empty, 0.0) / slots

    def _fitting(self, slots: int, memory: Memory) -> int:
        each = self._each(slots, memory)
        left = SHARE * memory.limit - memory.peak
        return min(MOST, slots + int(max(left, 0.0) / each)) if each else MOST

    def _limit(self, slots: int, memory: Memory) -> str:
        if slots >= MOST:
            return "the most that one worker trains"
        needed = memory.peak + self._each(slots, memory)
        return f"one more would need {needed:.1f} of {memory.limit:.1f} GiB"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"
