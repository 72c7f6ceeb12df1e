"""What to do after a sweep, or to complete it: a sentence, the command to type, and its price. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kto_sweep.compare.confidence import Certainty, seeds_to_settle
from kto_sweep.compare.importance import ImportanceTable
from kto_sweep.compare.ranking import Configuration, is_seed
from kto_sweep.compare.verdict import Verdict
from kto_sweep.errors import FailureCause
from kto_sweep.metrics import METRICS
from kto_sweep.search.range_ends import range_end
from kto_sweep.sweep.gpu_hours import gpu_time, seconds_per_trial
from kto_sweep.sweep.sweep_state import ShownState, SweepStatus, read_sweep_status
from kto_sweep.sweep.view import SweepView
from kto_sweep.text import counted, hours, number
from kto_sweep.trial import lookup

MIN_IMPORTANCE = 0.05
"""The range of a less important parameter is not worth widening."""
MAX_REPEATED = 5
"""Most configurations to repeat with more seeds."""
FIRST_CONFIGURATIONS, FIRST_SEEDS = 3, 3
"""The cheapest sweep that shows how large seed noise is among the leaders."""
MAX_SEEDS = 10
"""More seeds than this to settle a tie cost more than the difference is worth."""


@dataclass(frozen=True)
class NextStep:
    """One thing to do."""

    text: str
    command: str = ""
    """Empty if there is nothing to type."""
    gpu_hours: float | None = None
    """Estimate from the times of this sweep's trials; None if it costs none, or if it is unknown."""
    unit: str = "GPU-hours"
    """`CPU-hours` on a CPU, `device-hours` if the devices are unknown."""

    def __str__(self) -> str:
        price = "" if self.gpu_hours is None else f" (about {hours(self.gpu_hours)} {self.unit})"
        return f"{self.text}{price}{': ' if self.command else '.'}{self.command}"


def next_steps(
    view: SweepView, verdicts: Sequence[Verdict], importance: ImportanceTable, metric: str
) -> Iterator[NextStep]:
    """The steps, most urgent first."""
    status = read_sweep_status(view)
    stopped = status.state is ShownState.STOPPED
    yield from _retry(view, status)
    if not stopped:
        yield from _complete(view, status)
    causes = {trial.failure for trial in view.trials}
    if FailureCause.OUT_OF_MEMORY in causes:
        yield NextStep("Check which trials fit before the next sweep", "kto-sweep plan FILE")
    largest = max(verdicts, key=lambda verdict: len(verdict.tied) + 1, default=None)
    # While trials are left, what comes next may change.
    is_over = stopped or status.state not in _COMPLETE or status.left is None
    if largest is not None and len(verdicts) == 1 and is_over:
        yield from _settle(view, status, largest)
        yield from _widen(view, largest.winner, importance)
        if largest.certainty is Certainty.CLEAR:
            yield NextStep(
                "Train with these settings", f"kto-sweep train --from {view.ref.argument} --whole-data"
            )
    if stopped:  # on purpose: what it has comes first
        yield from _complete(view, status)
    caution = METRICS[metric].caution if metric in METRICS else ""
    if caution:
        yield NextStep(f"Rank by a metric other than {metric}: {caution}")


def _retry(view: SweepView, status: SweepStatus) -> Iterator[NextStep]:
    if status.grid.retryable:
        yield NextStep(
            f"Retry {counted(len(status.grid.retryable), 'trial')} that failed for external reasons",
            f"kto-sweep resume {view.ref.argument}",
        )


_COMPLETE = {
    ShownState.PENDING: ("No agent has started it; to train here", "agent"),
    ShownState.RUNNING: ("It is still running; to train on this box too", "agent"),
    ShownState.INTERRUPTED: ("No agent trains what is left; to train here", "agent"),
    ShownState.PAUSED: ("It is paused; to continue", "resume"),
    ShownState.STOPPED: ("It was stopped; to train the rest", "resume"),
}
"""What to say and type in each state of a sweep that has trials left."""


def _complete(view: SweepView, status: SweepStatus) -> Iterator[NextStep]:
    """The step that trains what the sweep still lacks."""
    if status.left == 0 or status.state not in _COMPLETE:
        return
    text, command = _COMPLETE[status.state]
    if status.left is not None:
        text = f"{counted(status.left, 'trial')} left. {text}"
    time = gpu_time(view, status.grid)
    yield NextStep(text, f"kto-sweep {command} {view.ref.argument}", *_price(time.remaining, time.unit))


def _price(seconds: float | None, unit: str) -> tuple[float | None, str]:
    return (seconds / 3600 if seconds else None), unit


def _settle(view: SweepView, status: SweepStatus, verdict: Verdict) -> Iterator[NextStep]:
    """The cheapest sweep that shows whether the lead is real."""
    if verdict.certainty is Certainty.CLEAR or verdict.lead is None:
        return
    if verdict.noise is None:
        count, seeds = FIRST_CONFIGURATIONS, FIRST_SEEDS
        text = f"Measure seed noise: train the best {{}} with {seeds} seeds each"
    else:
        count, needed = len(verdict.tied) + 1, seeds_to_settle(verdict.lead, verdict.noise)
        if needed is None or needed > MAX_SEEDS:
            more = "" if needed is None else f"; about {needed} seeds of each would tell them apart"
            yield NextStep(f"Choose the cheapest of the {count} tied configurations{more}")
            return
        seeds = needed
        text = f"Settle the tie: train the best {{}} with {seeds} seeds each"
    count = min(count, MAX_REPEATED, len(verdict.others) + 1)
    contenders = [verdict.winner, *verdict.others][:count]
    seconds = seconds_per_trial(view, [trial for each in contenders for trial in each.trials])
    price = _price(None if seconds is None else seconds * seeds * count, gpu_time(view, status.grid).unit)
    command = f"kto-sweep replicate {view.ref.argument} --top {count} --seeds {seeds}"
    yield NextStep(text.format(count), command, *price)


def _widen(view: SweepView, winner: Configuration, importance: ImportanceTable) -> Iterator[NextStep]:
    shares = {row.name: row.importance for row in importance.rows}
    for parameter in sorted(view.space.searched, key=lambda each: -shares.get(each.name, 0.0)):
        if is_seed(parameter.name) or shares.get(parameter.name, 1.0) < MIN_IMPORTANCE:
            continue
        value = lookup(winner.trials[0].config, parameter.name)
        if end := range_end(parameter, value):
            text = (
                f"Widen {parameter.name}: the best value ({number(value)}) is at the {end} end of its range"
            )
            yield NextStep(text, f"kto-sweep widen {view.ref.argument} {parameter.name}")
