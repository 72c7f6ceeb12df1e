"""One supervisor per box: waits for an event, lets the scheduler decide and the executor act.

executor.next_event --> scheduler.step(state, event, now) --> executor.perform
"""

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kto_sweep.agent import scheduler
from kto_sweep.agent.events import Crashed, SignalReceived
from kto_sweep.agent.executor import Executor
from kto_sweep.agent.state import AgentOutcome, AgentState, Phase


def supervise(
    state: AgentState, executor: Executor, clock: Callable[[], float] = time.monotonic
) -> AgentState:
    """Run the agent until nothing is left to do, or a signal or an error ends it; returns the final state.

    Raises the error that ended it, such as no worker that starts, a deleted sweep or a bug.
    """
    with _signals_to(executor):
        state, actions = scheduler.start(state, clock())
        while True:
            try:
                executor.perform(actions)
                if state.outcome is not None:
                    break
                state, actions = scheduler.step(state, executor.next_event(), clock())
            except Exception as error:
                if state.phase is Phase.ABORTING:
                    raise
                state, actions = scheduler.step(state, Crashed(error), clock())
        executor.close()
    if state.outcome is AgentOutcome.ERROR:
        atexit.register(os._exit, 1)  # otherwise wandb would mark open runs as finished
        assert state.error is not None
        raise state.error
    return state


@contextmanager
def _signals_to(executor: Executor) -> Iterator[None]:
    """Report SIGINT and SIGTERM as events; ignore SIGHUP, so that closing the terminal ends nothing."""

    def report(number: int, frame: FrameType | None) -> None:
        executor.put(SignalReceived(number))

    before = {number: signal.signal(number, report) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
