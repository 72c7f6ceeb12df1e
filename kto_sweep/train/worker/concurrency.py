"""Finds the number of trials that are worth training at once on one device. Pure.

Each number is measured by tokens per second; it is doubled while more trials fit and make all of them faster.
Where memory is the limit, more is computed again in the backward, so that more trials fit; what was fastest
stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kto_sweep.models.architecture import Recompute
from kto_sweep.plan.together import MIN_GAIN
from kto_sweep.train.device import Memory

MAX_TRIALS = 64
"""The most trials that one worker trains at once."""
SETTLING = 3
"""Steps after a trial joins or leaves that are not measured: kernels are chosen, memory is rearranged."""
WINDOW = 12
"""Steps in a measurement."""
MEMORY_SHARE = 0.9
"""Share of the memory that is planned for: the rest is for fragmentation and for longer batches."""
OUTLIER = 3.0
"""A step of more than this many times the median was interrupted, and is not measured."""

RECOMPUTED = {
    Recompute.MLP: "the MLPs' gate and up are recomputed in the backward pass",
    Recompute.LAYER: "all activations are recomputed in the backward pass",
}
"""What a level of recomputation means, for people."""


@dataclass(frozen=True)
class Concurrency:
    """The number of trials to train at once."""

    slots: int
    reason: str
    """For people; empty before the first measurement."""
    recompute: Recompute = Recompute.NOTHING
    """What their backward passes compute again."""


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
    without a trial, GiB. `levels`: what the model can compute again, in rising order.
    """

    def __init__(
        self, slots: int = 1, empty: float = 0.0, levels: Sequence[Recompute] = (Recompute.NOTHING,)
    ) -> None:
        self.concurrency = Concurrency(slots, "")
        self.empty = empty
        self.levels = levels
        self._settled = False
        self._rates: dict[tuple[Recompute, int], float] = {}
        """Tokens per second of all trials together, by what is computed again and their number."""
        self._active = 0
        self._since = 0
        """Steps since a trial joined or left."""
        self._window = _Window()

    @property
    def has_measured(self) -> bool:
        """Whether any number of trials was measured."""
        return bool(self._rates)

    def add_step(self, active: int, tokens: int, seconds: float, memory: Callable[[], Memory]) -> None:
        """Measure a step of `active` trials. `seconds`: without evaluations, checkpoints and waiting."""
        if self._settled or active < self.concurrency.slots:
            self._active = active
            return
        if active > self.concurrency.slots:  # this worker took over the trials of another one
            self.concurrency = Concurrency(active, "", self.concurrency.recompute)
            self._window = _Window()
        if active != self._active:
            self._active, self._since = active, 0
        self._since += 1
        if self._since <= SETTLING:
            return
        self._window.tokens.append(tokens)
        self._window.seconds.append(seconds)
        if len(self._window.tokens) == WINDOW:
            self._rates[self.concurrency.recompute, active] = self._window.rate()
            self._window = _Window()
            self._decide(active, memory())

    def on_out_of_memory(self, fitting: int) -> None:
        """Settle: `fitting` trials are left, and more than were measured before do not fit."""
        wanted = self.concurrency.slots
        measured = [slots for _, slots in self._rates if slots < wanted and not self._settled]
        slots = max(1, min(fitting, max(measured, default=self.concurrency.slots)))
        if not self._settled or slots < self.concurrency.slots:
            self._settle(slots, f"memory ran out with {self.concurrency.slots}")

    def _decide(self, slots: int, memory: Memory) -> None:
        level = self.concurrency.recompute
        rates = {count: rate for (at, count), rate in self._rates.items() if at is level}
        before = max((fewer for fewer in rates if fewer < slots), default=None)
        gain = 0.0
        if before is not None:
            gain = rates[slots] / rates[before] - 1
            # Where memory did not allow for twice as many, a smaller gain is enough.
            if gain < MIN_GAIN * (slots / before - 1):
                more = slots - before
                self._settle_on_fastest(
                    before, f"{more} more would add {_percent(max(gain, 0.0))} throughput"
                )
                return
        wanted = min(2 * slots, self._fitting(slots, memory))
        higher = next((each for each in self.levels if each > level), None)
        if wanted <= slots and (higher is None or slots >= MAX_TRIALS):
            self._settle_on_fastest(slots, self._limit(slots, memory))
        elif wanted <= slots:
            assert higher is not None
            # The same number first: its peak says how many fit.
            self.concurrency = Concurrency(slots, f"trying to fit more: {RECOMPUTED[higher]}", higher)
            self._active = 0  # the next steps settle again
        elif before is None:
            self.concurrency = Concurrency(wanted, f"trying {_trials(wanted)} at once", level)
        else:
            reason = f"{slots} in place of {before} added {_percent(gain)} throughput"
            self.concurrency = Concurrency(wanted, f"up to {_trials(wanted)} at once: {reason}", level)

    def _settle_on_fastest(self, slots: int, reason: str) -> None:
        """Settle on `slots` as they are, or on what was faster while less was computed again."""
        level = self.concurrency.recompute
        lower = {at: rate for at, rate in self._rates.items() if at[0] < level}
        fastest = max(lower, key=lower.__getitem__, default=None)
        if fastest is not None and lower[fastest] >= self._rates[level, slots]:
            gain = self._rates[level, slots] / lower[fastest] - 1
            reason = f"{_trials(slots)}, and {RECOMPUTED[level]}: {_percent(gain)} throughput"
            level, slots = fastest
        elif level is not Recompute.NOTHING:
            reason += f"; {RECOMPUTED[level]}"
        self._settle(slots, reason, level)

    def _settle(self, slots: int, reason: str, level: Recompute | None = None) -> None:
        self._settled = True
        level = self.concurrency.recompute if level is None else level
        self.concurrency = Concurrency(slots, f"{_trials(slots)} at once: {reason}", level)

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
