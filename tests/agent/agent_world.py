"""A simulated environment of the scheduler, without processes, threads and clocks.

`World` plays any sequence of choices: workers that exit, hang or run out of memory, servers that are
unreachable, reject runs or send them twice, full disks, lost GPUs, signals. It checks invariants each step.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from kto_sweep.agent import actions as do
from kto_sweep.agent import events, scheduler
from kto_sweep.agent.devices import Device
from kto_sweep.agent.events import OpeningFailure
from kto_sweep.agent.state import AgentOutcome, AgentState, Assignment, Phase, Settings, TrialStatus
from kto_sweep.agent.time_budget import Forecast
from kto_sweep.errors import KtoSweepError
from kto_sweep.protocol import Done, Failed, Metrics, Ready, SetConcurrency, WorkerBroken

GPU_0, GPU_1 = (Device(f"gpu {at}", str(at), f"GPU-{at}") for at in range(2))
Kind = TypeVar("Kind")
CONFIG = {"model_size": "tiny", "dataset": "rows.jsonl"}


def trial(run_id: str, **fields: Any) -> Assignment:
    """A trial that the server sends."""
    return Assignment.from_config(run_id, CONFIG, **fields)


def play(state: AgentState, *happened: events.Event, now: float = 0.0) -> tuple[AgentState, list[do.Action]]:
    """The state after these events, and all actions."""
    actions: list[do.Action] = []
    for event in happened:
        state, more = scheduler.step(state, event, now)
        actions += more
    return state, actions


def ready(
    devices: Sequence[Device] = (GPU_0,),
    slots: int = 1,
    *,
    requeued: Sequence[Assignment] = (),
    **settings: Any,
) -> AgentState:
    """An agent with ready workers and slots that wait for the server."""
    state = AgentState.of(
        {device: f"{device.name}.log" for device in devices}, slots, Settings(**settings),
        requeued=tuple(requeued),
    )  # fmt: skip
    state, _ = scheduler.start(state, 0.0)
    return play(state, *(said(state, device.name, Ready(device.name)) for device in devices))[0]


def running(*run_ids: str, devices: Sequence[Device] = (GPU_0,), **settings: Any) -> AgentState:
    """An agent that is training these trials, with as many slots per device as needed."""
    per_device = -(-len(run_ids) // len(devices))
    state = ready(devices, per_device, **settings)
    for slot, run_id in enumerate(run_ids):
        state, _ = play(
            state, events.Commands(slot, run=trial(run_id)), events.RunOpened(slot, run_id, run_id, 0)
        )
    return state


def said(state: AgentState, device: str, message: Any) -> events.WorkerMessage:
    """A message from the device's current worker."""
    return events.WorkerMessage(device, state.devices[device].worker, message)


def exited(state: AgentState, device: str, status: int = -9, output: str = "") -> events.WorkerExited:
    """The exit of the device's current worker."""
    return events.WorkerExited(device, state.devices[device].worker, status, output)


def lines(actions: Sequence[do.Action]) -> list[str]:
    """The printed lines."""
    return [action.text for action in actions if isinstance(action, do.Say)]


def of_kind(actions: Sequence[do.Action], kind: type[Kind]) -> list[Kind]:
    return [action for action in actions if isinstance(action, kind)]


class World:
    """A sweep's server, workers and W&B runs; choices decide what happens next."""

    def __init__(
        self,
        *,
        devices: int,
        slots: int,
        cells: int,
        orphans: int,
        settings: Settings,
        timed: bool,
        deadly: bool,
    ) -> None:
        self.devices = [Device(f"gpu {at}", str(at), f"GPU-{at}") for at in range(devices)]
        self.cells = [f"cell{at}" for at in range(cells)]
        self.now = 0.0
        self.time_left = 5000.0 if timed else float("inf")
        self.workers: dict[str, tuple[int, set[str]]] = {}
        """Of each device the present worker's number and the trials that it has."""
        self.starting: dict[str, int] = {}
        self.leaving: list[tuple[str, int]] = []
        """Workers that were ended, whose exit will be reported."""
        self.stopping: set[str] = set()
        self.asking: dict[int, tuple[str, ...]] = {}
        """Slots whose next heartbeat is due, with the runs that it names."""
        self.opening: list[tuple[int, Assignment]] = []
        self.closing: list[tuple[int, str]] = []
        self.open: set[str] = set()
        """Runs that are open and were not told to close."""
        self.steps: dict[str, int] = {}
        self.silence = 0.0
        self.server_is_gone = False
        self.deadly = deadly
        left = tuple(trial(f"left{at}") for at in range(orphans))
        forecast = Forecast(lambda trial, done, together: (10, 400.0)) if timed else None
        logs = {device: f"{device.name}.log" for device in self.devices}
        state = AgentState.of(
            logs, slots, settings, requeued=left, forecast=forecast, time_left=self.time_left
        )
        self.state, actions = scheduler.start(state, self.now)
        self.perform(actions)

    # Actions of the agent.

    def perform(self, actions: Sequence[do.Action]) -> None:
        for action in actions:
            match action:
                case do.StartWorker(device, number):
                    assert device.name not in self.workers, "two workers on one device"
                    self.starting[device.name] = number
                case do.KillWorker(device) | do.EndWorker(device):
                    self._end_worker(device)
                case do.OpenRun(slot, _, assignment):
                    self.opening.append((slot, assignment))
                case do.CloseRun(slot, run_id):
                    assert run_id in self.open, f"{run_id} is closed twice, or was never open"
                    self.open.remove(run_id)
                    self.closing.append((slot, run_id))
                case do.Dispatch(slot, device, assignment):
                    self._dispatch(slot, device, assignment)
                case do.RequestStop(_, run_id):
                    self.stopping.add(run_id)
                case do.Heartbeat(slot, _, names):
                    assert not self.state.slots[slot].closed
                    self.asking[slot] = names
                case do.CloseSlot(slot):
                    self.asking.pop(slot, None)
                case do.Record(run_id) | do.Log(run_id):
                    assert run_id in self.open, f"{run_id} is logged to after its end"

    def _end_worker(self, device: str) -> None:
        if device in self.starting:
            self.leaving.append((device, self.starting.pop(device)))
        elif device in self.workers:
            number, trials = self.workers.pop(device)
            trials.clear()
            self.leaving.append((device, number))

    def _dispatch(self, slot: int, device: str, assignment: Assignment) -> None:
        _, trials = self.workers[device]  # there is one, and it is ready
        holders = [name for name, (_, theirs) in self.workers.items() if assignment.run_id in theirs]
        assert not holders, f"{assignment.run_id} is in two workers"
        isolated = [
            other.trial.run_id
            for other in self.state.slots.values()
            if other.device == device and other.number != slot and other.trial is not None
            and other.trial.isolated and other.trial.status is TrialStatus.RUNNING
        ]  # fmt: skip
        assert not isolated, f"{assignment.run_id} joins {isolated}, which has to be alone"
        trials.add(assignment.run_id)
        self.stopping.discard(assignment.run_id)

    # Events of the world.

    def happen(self, event: events.Event) -> None:
        before = self.state
        copy = (dict(before.slots), dict(before.devices), before.requeued, before.stats)
        held = {held.run_id for held in self._held() if held.is_open}
        self.state, actions = scheduler.step(before, event, self.now)
        assert copy == (before.slots, before.devices, before.requeued, before.stats), (
            "step changed its argument"
        )
        self.perform(actions)
        self._check(held)

    def _held(self) -> list[Assignment]:
        return [slot.trial for slot in self.state.slots.values() if slot.trial is not None] + list(
            self.state.requeued
        )

    def _check(self, held_before: set[str]) -> None:
        held = [assignment for assignment in self._held() if assignment.status is not TrialStatus.CLOSING]
        names = [assignment.run_id for assignment in held]
        assert len(names) == len(set(names)), f"a trial is in two places: {sorted(names)}"
        closing = {run_id for _, run_id in self.closing}
        if self.state.outcome is None and self.state.phase is not Phase.SERVICE_LOST:
            lost = (
                held_before
                - set(names)
                - closing
                - {slot.trial.run_id for slot in self.state.slots.values() if slot.trial}
            )
            assert not lost, f"{lost} is lost"
            assert self.open == {assignment.run_id for assignment in held if assignment.is_open}
        settings, stats = self.state.settings, self.state.stats
        assert settings.count is None or stats.started <= settings.count
        assert stats.started >= 0

    def progress(self) -> list[events.Event]:
        """Possible next events without faults."""
        next_ones: list[events.Event] = [self._tick(0.5)]
        for name, number in self.starting.items():
            next_ones.append(events.WorkerMessage(name, number, Ready(name)))
        for name, (number, trials) in self.workers.items():
            next_ones.append(events.WorkerMessage(name, number, SetConcurrency(3, "there is room")))
            if self.deadly and self.cells[0] in trials:  # no worker survives this trial
                next_ones += [events.WorkerExited(name, number, -9)] * 9
            for run_id in sorted(trials):
                step = self.steps.get(run_id, 0) + 1
                next_ones += [events.WorkerMessage(name, number, Metrics(run_id, step, {"loss": 0.5}))] * 2
                next_ones.append(
                    events.WorkerMessage(name, number, Done(run_id, {}, step, run_id in self.stopping))
                )
        next_ones += [events.WorkerExited(name, number, 0) for name, number in self.leaving]
        for slot, assignment in self.opening:
            step = self.steps.get(assignment.run_id, 0)
            next_ones.append(events.RunOpened(slot, assignment.run_id, "name", step))
        next_ones += [events.RunClosed(slot, run_id, True) for slot, run_id in self.closing]
        for slot, names in self.asking.items():
            if not names:
                next_ones += [events.Commands(slot, run=trial(cell)) for cell in self.cells]
        return next_ones

    def faults(self) -> list[events.Event]:
        """Possible faults, and events that end a part of the work."""
        next_ones: list[events.Event] = [self._tick(40.0)]
        for name, number in self.starting.items():
            next_ones += [
                events.WorkerExited(name, number, 1, "no memory"),
                events.WorkerExited(name, number, -9),
                events.WorkerNotStarted(name, number, "no processes left"),
            ]
        for name, (number, trials) in self.workers.items():
            next_ones += [
                events.WorkerExited(name, number, -11, "segmentation fault"),
                events.WorkerExited(name, number, 1, "CUDA error: GPU is lost"),
                events.WorkerExited(name, number, 1, "CUDA error: device-side assert triggered"),
                events.WorkerMessage(name, number, WorkerBroken("uncorrectable ECC error")),
                events.WorkerMessage(name, number, SetConcurrency(1, "")),
            ]
            for run_id in sorted(trials):
                next_ones += [
                    events.WorkerMessage(name, number, Failed(run_id, "out of memory", "too large")),
                    events.WorkerMessage(name, number, Failed(run_id, "network", "no network")),
                    events.StopRequested(run_id),
                ]
        for slot, assignment in self.opening:
            next_ones += [events.RunNotOpened(slot, assignment.run_id, kind, "no") for kind in OpeningFailure]
            next_ones.append(events.DiskFull(slot, assignment.run_id, "full"))
        next_ones += [events.RunClosed(slot, run_id, False) for slot, run_id in self.closing]
        for slot, names in self.asking.items():
            next_ones += [events.Commands(slot, exit=True), events.Commands(slot, stop=names)]
        return next_ones

    def ends(self) -> list[events.Event]:
        """Events that end the agent."""
        return [
            events.SignalReceived(2),
            events.ServiceGone(),
            events.ServerMoved("http://127.0.0.1:2"),
            events.SweepGone(KtoSweepError("gone")),
            events.Crashed(OSError("a defect")),
        ]

    def _tick(self, seconds: float) -> events.Tick:
        self.silence = self.silence + seconds if self.server_is_gone else 0.0
        return events.Tick(self.time_left - seconds, self.silence, "No response from the server", frozenset())

    def choose(self, number: int) -> None:
        """Choose the next event: mostly progress, often a fault, rarely the end."""
        kind, number = number % 100, number // 100
        if 94 <= kind < 98:
            self.server_is_gone = not self.server_is_gone
        choices = self.progress() if kind < 80 else self.faults() if kind < 98 else self.ends()
        self.let(choices[number % len(choices)])

    def let(self, event: events.Event) -> None:  # noqa: PLR0912 - a table
        """Apply an event to the world, then report it."""
        match event:
            case events.Tick(time_left):
                self.now += 5.0 if self.time_left == float("inf") else self.time_left - time_left
                self.time_left = time_left
            case events.WorkerMessage(name, number, Ready()):
                del self.starting[name]
                self.workers[name] = (number, set())
            case events.WorkerMessage(name, _, Metrics(run_id, step)):
                self.steps[run_id] = step
            case events.WorkerMessage(name, _, Done() | Failed() as message):
                self.workers[name][1].discard(message.run_id)
            case events.WorkerExited(name, number):
                if (name, number) in self.leaving:
                    self.leaving.remove((name, number))
                elif self.starting.get(name) == number:
                    del self.starting[name]
                else:
                    del self.workers[name]
            case events.WorkerNotStarted(name):
                del self.starting[name]
            case events.RunOpened(slot, run_id):
                self._opened(slot, run_id)
                self.open.add(run_id)
            case events.RunNotOpened(slot, run_id) | events.DiskFull(slot, run_id):
                self._opened(slot, run_id)
            case events.RunClosed(slot, run_id):
                self.closing.remove((slot, run_id))
            case events.Commands(slot):
                self.asking.pop(slot, None)
        self.happen(event)

    def _opened(self, slot: int, run_id: str) -> None:
        self.opening = [entry for entry in self.opening if (entry[0], entry[1].run_id) != (slot, run_id)]

    def calm_down(self) -> None:
        """Stop faults and let the server run out of trials: the agent must end."""
        self.server_is_gone = False
        for _ in range(2000):
            if self.state.outcome is not None:
                break
            self.let(self._next_good())
        assert self.state.outcome is not None, f"it does not end: {self.state}"
        assert self.state.outcome in (AgentOutcome.KILLED, AgentOutcome.RESTART) or not self.open, (
            f"left open: {self.open}"
        )
        assert self.state.outcome is not AgentOutcome.DONE or not any(
            slot.trial for slot in self.state.slots.values()
        )

    def _next_good(self) -> events.Event:
        for name, number in self.starting.items():
            return events.WorkerMessage(name, number, Ready(name))
        for slot, assignment in self.opening:
            return events.RunOpened(slot, assignment.run_id, "name", self.steps.get(assignment.run_id, 0))
        for slot, run_id in self.closing:
            return events.RunClosed(slot, run_id, True)
        for name, (number, trials) in self.workers.items():
            for run_id in sorted(trials):
                return events.WorkerMessage(name, number, Done(run_id, {}, 9, run_id in self.stopping))
        for slot, names in self.asking.items():
            if not names:
                return events.Commands(slot, exit=True)
        return self._tick(40.0)
