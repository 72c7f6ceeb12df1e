"""The states of runs and sweeps; the values are W&B's wire format."""

from enum import StrEnum


class RunState(StrEnum):
    """State of a run."""

    PENDING = "pending"
    """Assigned to an agent or queued; its process has not started yet."""
    RUNNING = "running"
    PREEMPTING = "preempting"
    """Its process announced that it is being preempted."""
    PREEMPTED = "preempted"
    """Preempted; waits to be assigned again."""
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    """Stopped sending heartbeats without an exit code."""
    KILLED = "killed"
    """Ended by a stop request."""


ENDED = frozenset({RunState.FINISHED, RunState.FAILED, RunState.CRASHED, RunState.KILLED})
"""Final states."""
ACTIVE = (RunState.PENDING, RunState.RUNNING, RunState.PREEMPTING, RunState.PREEMPTED)
"""States of runs that have not ended."""


class SweepState(StrEnum):
    """State of a sweep."""

    PENDING = "PENDING"
    """No agent has registered yet."""
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    CANCELED = "CANCELED"


OVER = frozenset({SweepState.FINISHED, SweepState.CANCELED})
"""Final states: the sweep assigns no new runs."""
