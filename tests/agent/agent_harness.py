"""An agent with fakes: its server is a function, its workers and W&B runs are objects."""

import io
import itertools
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kto_sweep.agent.connectivity import Connectivity
from kto_sweep.agent.devices import CPU, Device
from kto_sweep.agent.events import Event, SignalReceived
from kto_sweep.agent.executor import Executor
from kto_sweep.agent.lease import AgentLease
from kto_sweep.agent.progress import ProgressDisplay
from kto_sweep.agent.state import AgentState, Assignment, Settings
from kto_sweep.agent.supervisor import supervise
from kto_sweep.agent.wandb_run import Monitored, RunOptions, TrialRun
from kto_sweep.agent.workers import WorkerProcess
from kto_sweep.alerts import RunAlert
from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.protocol import Message, Order, Ready, StartTrial
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.private_api import Command

REF = SweepRef("local", "kto-sweep", "ab12cd34")
CONFIG = {"model_size": "tiny", "dataset": "rows.jsonl", "learning_rate": 0.1}


class FakeRun(TrialRun):
    """A run that remembers how it ended."""

    def __init__(self, harness: "AgentHarness", run_id: str) -> None:
        self._harness, self._id, self.logged_steps = harness, run_id, 0

    @property
    def name(self) -> str:
        return self._id

    def loaded(self, provenance: Mapping[str, Any]) -> None:
        pass

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.logged_steps = step

    def note(self, text: str) -> None:
        pass

    def alert(self, alert: RunAlert) -> None:
        pass

    def take_warning(self) -> str:
        return ""

    def release_folder(self) -> None:
        pass

    def _end(self, how: str) -> bool:
        self._harness.ends.append((self._id, how))
        return True

    def succeed(self, summary: Mapping[str, Any]) -> bool:
        return self._end("finished")

    def stop(self, summary: Mapping[str, Any], *, for_good: bool = True) -> bool:
        return self._end("stopped")

    def fail(self, cause: str, message: str) -> bool:
        return self._end("failed")

    def preempt(self) -> bool:
        return self._end("requeued")


class FakeWorker(WorkerProcess):
    """A worker that is ready at once and passes its orders to the harness."""

    is_held = False
    pids = itertools.count(1000)

    def __init__(self, harness: "AgentHarness", device: Device) -> None:
        self._harness = harness
        self._messages_out: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
        self.log = Path("worker.log")
        self._pid = next(self.pids)
        self.say(Ready(device.name))

    @property
    def pid(self) -> int:
        return self._pid

    def say(self, message: Message) -> None:
        self._messages_out.put(message)

    def die(self, status: int) -> None:
        self._messages_out.put(status)

    def listen(self, on_message: Callable[[Message], None]) -> int:
        while not isinstance(message := self._messages_out.get(), int):
            on_message(message)
        return message

    def send(self, order: Order) -> None:
        self._harness.orders.append(order)
        self._harness.on_order(self, order)

    def end(self, *, at_once: bool = False) -> None:
        self.die(0)

    def kill(self) -> None:
        self.die(-9)

    def last_output(self, lines: int = 12) -> str:
        return ""


@dataclass
class AgentHarness:
    """Everything around the agent, which tests set and read; implements TrialSource."""

    home: Home
    beat: Callable[[str, Sequence[str]], list[Command]] = lambda agent, runs: (
        [] if runs else [Command("exit")]
    )
    """The server's answer to a heartbeat of this agent that names these runs."""
    open_run: Callable[[str], None] = lambda run_id: None
    """What happens as a run is opened."""
    on_order: Callable[[FakeWorker, Order], None] = lambda worker, order: None
    register_agent: Callable[[], str] = lambda: secrets.token_hex(4)
    gone: list[bool] = field(default_factory=list)
    """The server does not know the sweep, if there is anything in it."""
    orders: list[Order] = field(default_factory=list)
    ends: list[tuple[str, str]] = field(default_factory=list)
    beats: list[tuple[str, ...]] = field(default_factory=list)
    monitored: list[Monitored] = field(default_factory=list)
    """What the system metrics of each opened run are those of."""
    output: io.StringIO = field(default_factory=io.StringIO)
    connectivity: Connectivity = field(default_factory=lambda: Connectivity("http://127.0.0.1:9", None, 3600))
    ref: SweepRef = REF
    executor: Executor | None = None
    registered: bool = False

    # TrialSource.

    def register(self, host: str) -> str:
        agent = self.register_agent()
        self.registered = True
        return agent

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        self.beats.append(tuple(running))
        return self.beat(agent_id, running)

    def is_gone(self) -> bool:
        return not self.registered or bool(self.gone)

    def why_lost(self, run_id: str) -> str:
        return ""

    def busy_entries(self, run_id: str) -> Sequence[object]:
        return ()

    # Used by tests.

    def perform(
        self, requeued: Sequence[Assignment] = (), *, slots: int | None = 1, **settings: Any
    ) -> AgentState:
        """Run the agent to its end; `slots` None: workers set the number of slots."""
        lease = AgentLease(self.home)
        progress = ProgressDisplay(Console(file=self.output, width=300), (), "loss", None)
        self.executor = Executor(
            self, self.home, progress, lease, RunOptions("loss", "minimize", local=False, patience=900),
            connectivity=self.connectivity, open_run=self._open_run,
            start_worker=lambda device, home: FakeWorker(self, device),
            heartbeat_seconds=0.02, tick_seconds=0.02,
        )  # fmt: skip
        state = AgentState.of(
            {CPU: "worker.log"}, slots or 1, Settings(grace=20, adjusts_slots=slots is None, **settings),
            requeued=tuple(requeued),
        )  # fmt: skip
        try:
            return supervise(state, self.executor)
        finally:
            self.connectivity.end()
            lease.end()

    def _open_run(self, ref: SweepRef, run_id: str, *args: Any, **options: Any) -> FakeRun:
        self.open_run(run_id)
        self.monitored.append(options["monitored"])
        return FakeRun(self, run_id)

    def happens(self, event: Event) -> None:
        """Report an event to the agent."""
        assert self.executor is not None
        self.executor.put(event)

    def interrupt(self) -> None:
        """Act like a first Ctrl-C."""
        self.happens(SignalReceived(2))

    def started(self) -> list[str]:
        """The trials dispatched to a worker."""
        return [order.run_id for order in self.orders if isinstance(order, StartTrial)]

    def said(self) -> str:
        return self.output.getvalue()


class Grid:
    """A server that sends cells; a cell that its agent no longer reports is sent up to three times."""

    def __init__(self, cells: int) -> None:
        self.sent = dict.fromkeys((f"cell{number}" for number in range(cells)), 0)
        self.over: set[str] = set()
        self._held: dict[str, str] = {}

    def beat(self, agent: str, runs: Sequence[str]) -> list[Command]:
        if runs:
            return []
        self._held.pop(agent, None)
        for name, times in self.sent.items():
            if name not in self.over and name not in self._held.values() and times < 3:
                self.sent[name] += 1
                self._held[agent] = name
                return [Command("run", name, CONFIG)]
        return [Command("exit")]


def refuse_registration(reason: str) -> Callable[[], str]:
    """A server that rejects every agent."""

    def refuse() -> str:
        raise ServerError(reason)

    return refuse


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def later(condition: Callable[[], object], act: Callable[[], object]) -> None:
    """Call `act` on another thread once `condition` holds."""

    def watch() -> None:
        wait(condition)
        act()

    threading.Thread(target=watch, daemon=True).start()
