"""A supervisor among stand-ins: its server is a function, its workers are objects."""

import io
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kto_sweep.agent import stations, supervisor, trials
from kto_sweep.agent.devices import CPU, Device
from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Event, Signalled
from kto_sweep.agent.heart import Heart
from kto_sweep.agent.lifeline import Lifeline
from kto_sweep.agent.presence import Orphan, Presence
from kto_sweep.agent.runs import TrialRun
from kto_sweep.agent.tally import Tally
from kto_sweep.home import Home
from kto_sweep.protocol import Message, Order, Ready, StartTrial
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.private_api import Command

REF = SweepRef("local", "kto-sweep", "ab12cd34")


class Run(TrialRun):
    """A run that remembers how it ended."""

    def __init__(self, stage: "Stage", run_id: str) -> None:
        self._stage, self._id, self.logged_steps = stage, run_id, 0

    @property
    def name(self) -> str:
        return self._id

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.logged_steps = step

    def note(self, text: str) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        pass

    def _ends(self, how: str) -> bool:
        self._stage.ends.append((self._id, how))
        return True

    def succeed(self, summary: Mapping[str, Any]) -> bool:
        return self._ends("finished")

    def stop(self, summary: Mapping[str, Any], *, for_good: bool = True) -> bool:
        return self._ends("stopped")

    def fail(self, cause: str, message: str) -> bool:
        return self._ends("failed")

    def preempt(self) -> bool:
        return self._ends("put back")


class Worker:
    """A worker that is ready at once and hands its orders to the stage."""

    is_held = False

    def __init__(
        self,
        stage: "Stage",
        device: Device,
        home: Home,
        log: Path,
        on_message: Callable[[Message], None],
        on_death: Callable[[int], None],
    ) -> None:
        self._stage, self.log, self.say, self.die = stage, log, on_message, on_death
        on_message(Ready(device.name))

    def send(self, order: Order) -> None:
        self._stage.orders.append(order)
        self._stage.on_order(self, order)

    def end(self, *, at_once: bool = False) -> None:
        pass

    def kill(self) -> None:
        pass

    def last_words(self) -> str:
        return ""


@dataclass
class Stage:
    """Everything around the supervisor, to be set and read by a test."""

    home: Home
    beat: Callable[[str, Sequence[str]], list[Command]]
    """The server's answer to a heartbeat of this agent that names these runs."""
    open_run: Callable[[str], None] = lambda run_id: None
    """What happens as a run is opened."""
    on_order: Callable[[Worker, Order], None] = lambda worker, order: None
    register: Callable[[], str] = lambda: secrets.token_hex(4)
    orders: list[Order] = field(default_factory=list)
    ends: list[tuple[str, str]] = field(default_factory=list)
    beats: list[tuple[str, ...]] = field(default_factory=list)
    output: io.StringIO = field(default_factory=io.StringIO)
    agent: supervisor.Supervisor | None = None

    def perform(self, orphans: Sequence[Orphan] = (), **options: Any) -> Tally:
        """Run the supervisor to its end."""
        presence = Presence(self.home)
        self.agent = supervisor.Supervisor(
            None, REF, self.home, [CPU], Display(Console(file=self.output, width=300), (), "loss", None),  # type: ignore[arg-type]
            presence, Lifeline("http://127.0.0.1:9", None), metric="loss", goal="minimize", local=False,
            grace=20, patience=900, orphans=orphans, **{"trials_per_device": 1, **options},
        )  # fmt: skip
        try:
            return self.agent.run()
        finally:
            presence.end()

    def happens(self, event: Event) -> None:
        """Let the agent hear of this."""
        assert self.agent is not None
        self.agent._events.put(event)

    def interrupt(self) -> None:
        """As a first Ctrl-C does."""
        self.happens(Signalled(2))

    def started(self) -> list[str]:
        """The trials that a worker was given."""
        return [order.run_id for order in self.orders if isinstance(order, StartTrial)]

    def said(self) -> str:
        return self.output.getvalue()


def set_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage on which everything is fast, and whose server has nothing to do."""
    home.runs.mkdir(parents=True)
    made = Stage(home, lambda agent, runs: [] if runs else [Command("exit")])

    def open_run(ref: SweepRef, run_id: str, *args: Any, **options: Any) -> Run:
        made.open_run(run_id)
        return Run(made, run_id)

    def beat(api: object, agent: str, runs: Sequence[str]) -> list[Command]:
        made.beats.append(tuple(runs))
        return made.beat(agent, runs)

    monkeypatch.setattr(TrialRun, "open", open_run)
    monkeypatch.setattr(stations, "WorkerProcess", partial(Worker, made))
    monkeypatch.setattr(stations, "Heart", partial(Heart, interval=0.02))
    monkeypatch.setattr(stations, "register_agent", lambda api, ref, host: made.register())
    monkeypatch.setattr(stations, "heartbeat", beat)
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(trials, "OPENING_SECONDS", (0.05,))
    return made


class Grid:
    """A server that hands out cells; one whose agent names it no more is handed out again, thrice in all."""

    def __init__(self, cells: int) -> None:
        self.handed_out = dict.fromkeys((f"cell{number}" for number in range(cells)), 0)
        self.over: set[str] = set()
        self._held: dict[str, str] = {}

    def beat(self, agent: str, runs: Sequence[str]) -> list[Command]:
        if runs:
            return []
        self._held.pop(agent, None)
        for name, times in self.handed_out.items():
            if name not in self.over and name not in self._held.values() and times < 3:
                self.handed_out[name] += 1
                self._held[agent] = name
                return [Command("run", name, {"learning_rate": 0.1})]
        return [Command("exit")]


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def later(condition: Callable[[], object], act: Callable[[], object]) -> None:
    """Have `act` called on another thread once `condition` holds."""

    def watch() -> None:
        wait(condition)
        act()

    threading.Thread(target=watch, daemon=True).start()
