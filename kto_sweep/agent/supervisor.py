"""One supervisor per box: waits for an event, has the scheduler decide, has the executor act.

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
    """Work until nothing is left to do, a signal comes or an error ends it; the state at the end.

    Raises what ended it when that is an error: no worker can be started, the sweep was deleted, a defect.
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
        atexit.register(os._exit, 1)  # else wandb would end what is still open as finished
        assert state.error is not None
        raise state.error
    return state


@contextmanager
def _signals_to(executor: Executor) -> Iterator[None]:
    """Have SIGINT and SIGTERM arrive as events, and a closed terminal not end the agent."""

    def report(number: int, frame: FrameType | None) -> None:
        executor.put(SignalReceived(number))

    before = {number: signal.signal(number, report) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
