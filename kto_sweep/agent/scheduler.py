"""Decides what the agent does next: `step` maps its state and an event to the new state and actions.

Pure: no clock, no thread, no file. Events are handled by:

Commands, RunOpened, RunNotOpened      slots.py (which trial trains where)
messages about a trial, RunClosed      trial_lifecycle.py
WorkerExited                           worker_exits.py, by the rules of retry_policy.py
Tick                                   watchdog.py, connectivity.py
SignalReceived, ServiceGone, Crashed   shutdown.py
"""

from kto_sweep.agent import connectivity, shutdown, slots, watchdog, worker_exits
from kto_sweep.agent import trial_lifecycle as trials
from kto_sweep.agent.actions import Action
from kto_sweep.agent.events import (
    Commands,
    Crashed,
    DiskFull,
    Event,
    RunClosed,
    RunNotOpened,
    RunOpened,
    ServerMoved,
    ServiceGone,
    SignalReceived,
    StopRequested,
    SweepGone,
    Tick,
    WorkerExited,
    WorkerMessage,
    WorkerNotStarted,
)
from kto_sweep.agent.state import AgentState, Phase
from kto_sweep.agent.transition import RESTART_SECONDS, Transition
from kto_sweep.errors import FailureCause
from kto_sweep.protocol import Message, Ready, SetConcurrency, WorkerBroken

MAX_TICK_SECONDS = 5.0
"""A longer time between two ticks counts as this much: while the agent was stopped, or its machine suspended,
it could not receive anything."""


def step(state: AgentState, event: Event, now: float) -> tuple[AgentState, list[Action]]:
    """The state after an event, and the actions to perform; `now`: seconds of a monotonic clock."""
    t = Transition(state, now)
    if state.phase is Phase.SERVICE_LOST:
        shutdown.without_service(t, event)
    elif state.phase is Phase.ABORTING:
        shutdown.while_aborting(t, event)
    else:
        _on_event(t, event)
        if t.state.phase in (Phase.WORKING, Phase.SHUTTING_DOWN):
            slots.dispatch_ready(t)
        shutdown.end_if_idle(t)
    return t.state, t.actions


def start(state: AgentState, now: float) -> tuple[AgentState, list[Action]]:
    """The first step: a worker for each device."""
    t = Transition(state, now)
    for name in t.devices:
        t.start_worker(name)
    return t.state, t.actions


def _on_event(t: Transition, event: Event) -> None:  # noqa: PLR0912 - a table
    match event:
        case Tick():
            _on_tick(t, event)
        case Commands():
            slots.on_commands(t, event)
        case WorkerMessage() if event.worker == t.devices[event.device].worker:
            _on_message(t, event.device, event.message)
        case WorkerExited() if event.worker == t.devices[event.device].worker:
            worker_exits.on_worker_exit(t, event)
        case WorkerNotStarted() if event.worker == t.devices[event.device].worker:
            t.set_device(event.device, worker=0)
            t.schedule_restart(event.device)
            reason = f"could not start a worker ({event.reason}); retrying every {RESTART_SECONDS:.0f} s"
            t.say(f"{event.device}: {reason}", once=f"no worker {event.device}")
        case RunOpened():
            slots.on_run_opened(t, event)
        case RunNotOpened():
            slots.on_run_not_opened(t, event)
        case RunClosed():
            trials.on_closed(t, event)
            slots.fill(t, event.slot, soon=True)
        case DiskFull(slot, run_id, reason):
            trial = t.slots[slot].trial
            if trial is not None and trial.run_id == run_id:
                trials.on_disk_full(t, slot, reason)
                slots.clear_if_shutting_down(t, slot)
        case StopRequested(run_id):
            slots.stop_trial(t, run_id)
        case SignalReceived(number):
            shutdown.on_signal(t, number)
        case ServiceGone():
            shutdown.lose_service(t)
        case ServerMoved(url):
            shutdown.follow_server(t, url)
        case SweepGone(error) | Crashed(error):
            shutdown.abort(t, error)


def _on_tick(t: Transition, tick: Tick) -> None:
    since = t.now if t.state.ticked_at is None else t.state.ticked_at
    elapsed = min(t.now - since, MAX_TICK_SECONDS)
    t.update(ticked_at=t.now, time_left=tick.time_left)
    for device in list(t.devices.values()):
        due = device.restart_at is not None and t.now >= device.restart_at
        if due and t.open_slots(device.device.name) and t.state.phase is Phase.WORKING:
            t.start_worker(device.device.name)
    if t.state.phase is Phase.WORKING:
        for name, reason in watchdog.watch(t, elapsed, tick.held_workers):
            worker_exits.give_up_worker(t, name, reason)
    if connectivity.is_lost(t, tick, elapsed):
        t.update_stats(server_lost=True)
        slots.close_idle(t)
    if tick.time_left <= 0 and t.state.phase is Phase.WORKING:
        t.update_stats(time_is_up=True)
        t.say("Time is up: stopping trials after their current step")
        shutdown.begin(t)
    if t.now > t.state.deadline:
        shutdown.kill(t)


def _on_message(t: Transition, name: str, message: Message) -> None:
    """Handle a worker's message."""
    watchdog.record_message(t, name, message)
    match message:
        case Ready(description):
            t.set_device(name, ready=True, was_ready=True)
            t.forget(f"no worker {name}")
            t.say(f"{name}: ready ({description})")
            for slot in t.slots_of(name):
                slots.fill(t, slot.number)
        case WorkerBroken(text, cause):
            t.set_device(name, exit_message=text, exit_cause=FailureCause(cause) if cause else None)
        case SetConcurrency():
            if t.state.settings.adjusts_slots:  # False: --trials-per-gpu sets the number
                slots.set_concurrency(t, name, message)
        case _:
            trial_slot = t.slot_of(message.run_id, name)
            if trial_slot is not None:  # None: a late message about a closed trial
                trials.on_message(t, trial_slot, message)
                slots.clear_if_shutting_down(t, trial_slot.number)
