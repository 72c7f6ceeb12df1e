"""What an agent has done so far, and whether it is to begin more."""

from dataclasses import dataclass, field

FAILURES_IN_A_ROW = 5
"""So many failed trials with none that succeeded mean that the next will fail as well."""


@dataclass
class Tally:
    """Counts of one agent's trials."""

    count: int | None = None
    """Trials to start at most."""
    started: int = 0
    finished: int = 0
    stopped: int = 0
    failed: int = 0
    failed_in_a_row: int = field(default=0, repr=False)
    interrupted: int = 0
    """The signal that ended it, or 0."""

    out_of_time: bool = False
    """The next trial could not end within the agent's time."""
    time_is_up: bool = False
    """The time is over: running trials are put back."""
    cut_off: bool = False
    """The server did not answer for so long that no more trials are started."""
    unsent: list[str] = field(default_factory=list)
    """Runs whose end the server has not heard of."""
    sent: list[tuple[float, str]] = field(default_factory=list)
    """Monotonic time of the end of each other run: what was sent to a server in trouble is in doubt."""

    @property
    def hopeless(self) -> bool:
        """Nothing but failures."""
        return self.failed_in_a_row >= FAILURES_IN_A_ROW

    @property
    def is_leaving(self) -> bool:
        """Open trials are put back: a signal came, or the time is over."""
        return bool(self.interrupted) or self.time_is_up

    @property
    def is_full(self) -> bool:
        """No more trials are to be started."""
        if self.is_leaving or self.out_of_time or self.hopeless or self.cut_off:
            return True
        return self.count is not None and self.started >= self.count

    def left(self, open_now: int) -> int | None:
        """Trials for whoever takes the place of this agent, which has so many open; None: any number."""
        return None if self.count is None else self.count - self.started + open_now

    def note_finished(self) -> None:
        """One more trial that succeeded."""
        self.finished += 1
        self.failed_in_a_row = 0

    def note_failed(self) -> None:
        """One more that did not."""
        self.failed += 1
        if not self.finished:
            self.failed_in_a_row += 1
