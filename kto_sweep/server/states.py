"""The states of runs and sweeps; the values are the words on the wire."""

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is in its life."""

    PENDING = "pending"
    """Handed to an agent; its process has not called in yet."""
    RUNNING = "running"
    PREEMPTING = "preempting"
    """Its process said that it is about to be taken away."""
    PREEMPTED = "preempted"
    """Taken away; waits to be handed out again."""
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"
    """Fell silent without an end."""
    KILLED = "killed"
    """Ended because a stop was asked for."""


ENDED = frozenset({RunState.FINISHED, RunState.FAILED, RunState.CRASHED, RunState.KILLED})
"""States in which no process works on the run and none will."""


class SweepState(StrEnum):
    """Where a sweep is in its life."""

    PENDING = "PENDING"
    """No agent has come yet."""
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    CANCELED = "CANCELED"


OVER = frozenset({SweepState.FINISHED, SweepState.CANCELED})
"""States in which a sweep hands out no more runs."""
