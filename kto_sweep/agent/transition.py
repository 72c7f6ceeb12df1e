"""One step of the agent: a working copy of its state, and the actions that the step requests."""

from dataclasses import replace
from typing import Any

from kto_sweep.agent.actions import Action, CloseSlot, EndWorker, Heartbeat, Say, StartWorker
from kto_sweep.agent.state import AgentState, Assignment, DeviceState, Slot, TrialStatus

RESTART_SECONDS = 30.0
"""Delay before the next worker where one could not start: a driver may be resetting the GPU, a disk may be
full."""


class Transition:
    """Collects changes to a state without modifying the original."""

    def __init__(self, state: AgentState, now: float) -> None:
        """`now`: seconds of a monotonic clock."""
        self.now = now
        self.slots = dict(state.slots)
        self.devices = dict(state.devices)
        self.state = replace(state, slots=self.slots, devices=self.devices)
        self.actions: list[Action] = []

    # Changes.

    def update(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **changes)

    def update_stats(self, **changes: Any) -> None:
        """Change fields of the statistics."""
        self.update(stats=replace(self.state.stats, **changes))

    def set_device(self, name: str, **changes: Any) -> DeviceState:
        """Change a device."""
        self.devices[name] = device = replace(self.devices[name], **changes)
        return device

    def set_slot(self, number: int, **changes: Any) -> Slot:
        """Change a slot."""
        self.slots[number] = slot = replace(self.slots[number], **changes)
        return slot

    def set_trial(self, number: int, **changes: Any) -> Assignment:
        """Change the trial in a slot."""
        trial = self.slots[number].trial
        assert trial is not None
        trial = replace(trial, **changes)
        self.set_slot(number, trial=trial)
        return trial

    def add_slot(self, device: str, **fields: Any) -> Slot:
        """A new slot on a device."""
        slot = Slot(1 + max(self.slots, default=-1), device, **fields)
        self.slots[slot.number] = slot
        return slot

    def do(self, action: Action) -> None:
        """Request an action."""
        self.actions.append(action)

    def say(self, text: str, *, once: str = "") -> None:
        """Print a line; with `once` only the first time, until `forget` is called with the same key."""
        if not once:
            self.do(Say(text))
        elif once not in self.state.said_once:
            self.update(said_once=self.state.said_once | {once})
            self.do(Say(text))

    def forget(self, once: str) -> None:
        """Allow the message with this key to be printed again."""
        if once in self.state.said_once:
            self.update(said_once=self.state.said_once - {once})

    # Queries.

    def slots_of(self, device: str) -> list[Slot]:
        """The slots of a device."""
        return [slot for slot in self.slots.values() if slot.device == device]

    def open_slots(self, device: str) -> list[Slot]:
        """The slots of a device that accept trials."""
        return [slot for slot in self.slots_of(device) if not slot.closed]

    def running(self, device: str) -> list[Slot]:
        """The slots of a device whose trial the worker is training."""
        return [slot for slot in self.slots_of(device) if slot.has(TrialStatus.RUNNING)]

    def over_capacity(self, device: str) -> bool:
        """Whether a device has more open slots than its worker can use."""
        target = self.devices[device].target_slots
        return target is not None and len(self.open_slots(device)) > target

    def slot_of(self, run_id: str, device: str | None = None) -> Slot | None:
        """The slot whose trial has this run; not the one that is closing it, if the run was sent again."""
        holders = [
            slot
            for slot in self.slots.values()
            if slot.trial is not None
            and slot.trial.run_id == run_id
            and (device is None or slot.device == device)
        ]
        return min(holders, key=lambda slot: slot.has(TrialStatus.CLOSING), default=None)

    def has(self, run_id: str) -> bool:
        """Whether this agent has the run and is not closing it; a server may send a run twice."""
        slot = self.slot_of(run_id)
        in_slot = slot is not None and not slot.has(TrialStatus.CLOSING)
        return in_slot or any(trial.run_id == run_id for trial in self.state.requeued)

    def is_closing(self, run_id: str) -> bool:
        """Whether a slot is closing this run."""
        return any(
            slot.has(TrialStatus.CLOSING) and slot.trial is not None and slot.trial.run_id == run_id
            for slot in self.slots.values()
        )

    # Changes that several parts of the scheduler make.

    def heartbeat(self, number: int, *, soon: bool = False) -> None:
        """Continue a slot's heartbeats, which report its run."""
        slot = self.slots[number]
        running = (slot.trial.run_id,) if slot.trial is not None else ()
        self.do(Heartbeat(number, slot.device, running, slot.ask_after, soon))

    def close_slot(self, number: int, *, kill: bool = False) -> None:
        """Close a slot; with the last slot of a device, end its worker."""
        slot = self.set_slot(number, closed=True)
        self.do(CloseSlot(number))
        device = self.devices[slot.device]
        if device.worker and not self.open_slots(slot.device):
            at_once = kill or bool(self.running(slot.device)) or not device.ready
            self.do(EndWorker(slot.device, at_once))
            self.set_device(slot.device, worker=0, ready=False)

    def start_worker(self, name: str) -> None:
        """Start a worker on a device; the worker reports when it is ready."""
        number = self.state.workers_started + 1
        self.update(workers_started=number)
        device = self.set_device(
            name, worker=number, ready=False, exit_message="", exit_cause=None, restart_at=None,
            silence=0.0, longest_silence=0.0, stepping=False, warned=False, killed=False,
        )  # fmt: skip
        self.do(StartWorker(device.device, number))

    def schedule_restart(self, name: str) -> None:
        """Start a worker on a device after a delay."""
        self.set_device(name, restart_at=self.now + RESTART_SECONDS)
