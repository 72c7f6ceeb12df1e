"""Who trains where: a slot without a trial gets one that has lost its place, or asks the server, or ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Opened
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.slots import Slot, Station, Work
from kto_sweep.agent.stations import Stations
from kto_sweep.agent.tally import Tally
from kto_sweep.agent.timekeeper import Timekeeper
from kto_sweep.agent.trials import Trials
from kto_sweep.protocol import SetConcurrency
from kto_sweep.wandb_client.private_api import Command


class Places:
    """Fills the slots of a floor."""

    def __init__(
        self,
        floor: Floor,
        stations: Stations,
        trials: Trials,
        tally: Tally,
        display: Display,
        timekeeper: Timekeeper | None,
    ) -> None:
        self._floor = floor
        self._stations = stations
        self._trials = trials
        self._tally = tally
        self._display = display
        self._timekeeper = timekeeper

    def serve(self, slot: Slot, *, soon: bool = False) -> None:
        """Have a free slot filled, or dismiss it."""
        if slot.ended or slot.work is not None:
            return
        homeless = self._floor.homeless
        if homeless and not self._tally.is_leaving:
            next_one = homeless[0]
            if isinstance(next_one, Work):
                slot.work = next_one
                homeless.popleft()
            elif not self._tally.is_full and self._affords(slot, next_one.run_id, next_one.config):
                self._trials.adopt(slot, next_one)
                homeless.popleft()
        if slot.work is not None:
            self._stations.ask(slot, [slot.work.run_id])
        elif self._tally.is_full or slot.station.crowded:
            self._stations.dismiss(slot)
        elif slot.station.ready:
            self._stations.ask(slot, [], soon=soon)

    def obey(self, slot: Slot, commands: Sequence[Command]) -> None:
        """Do what the server says."""
        for command in commands:
            match command.kind:
                case "run" | "resume" if slot.work is None:
                    free = not self._tally.is_full and not slot.ended
                    if free and self._affords(slot, command.run_id, command.config or {}):
                        self._trials.begin(slot, command)
                    self.retire_idle()  # a trial that is not begun here is handed out again by the server
                case "stop":
                    self._trials.order_stop(slot.station, command.run_id)
                case "exit" if slot.work is None:
                    slot.station.exhausted = True
                    self._stations.dismiss(slot)
        if not slot.ended:
            self._stations.ask(slot, [slot.work.run_id] if slot.work else [])

    def _affords(self, slot: Slot, run_id: str, config: Mapping[str, Any]) -> bool:
        """Whether there is time for a trial; if not, none is begun any more."""
        if self._timekeeper is None:
            return True
        beside = sum(other.work is not None for other in slot.station.slots)
        why = self._timekeeper.refusal(run_id, config, beside + 1)
        if why:
            self._tally.out_of_time = True
            self._display.say(f"run {run_id} is left for later: {why}; no more trials are started")
        return not why

    def take_in(self, event: Opened) -> None:
        """Go on with a trial whose run is open, or find another for its slot."""
        slot = event.slot
        self._trials.opened(event)
        if self._tally.is_leaving:
            self._trials.drop_unopened(slot)
        work = slot.work
        if work is None:
            self._fill_again(slot)
        elif work.run is None:
            pass  # it is tried again
        elif self._tally.is_leaving:
            self._trials.put_back(slot)
        elif slot.station.retired:
            self.rehouse(slot.station)

    def _fill_again(self, slot: Slot) -> None:
        """Find another trial for a slot whose last one was let go, unless no run can be opened in it."""
        if self._trials.can_open(slot):
            self.serve(slot)
            return
        self._display.say(
            f"{slot.station.device.name}: a slot takes no more trials: "
            f"{slot.failed_openings} times, one after another, a run could not be opened in it"
        )
        self._stations.dismiss(slot)

    def rehouse(self, retired: Station) -> None:
        """Have the open trials of a device that is used no more go on elsewhere."""
        for slot in retired.slots:
            work = slot.work
            if work is not None and work.run is not None and not work.closing:
                slot.work, work.suspect = None, True
                self._floor.homeless.append(work)
            self._stations.dismiss(slot)
        waiting = sum(isinstance(each, Work) for each in self._floor.homeless)
        healthy = [station for station in self._floor.stations if not station.retired]
        if waiting and all(station.ended for station in healthy):  # they had nothing left to do
            healthy[0].reopen(min(waiting, len(healthy[0].slots)))
            self._stations.employ(healthy[0])
        for slot in self._floor.slots:
            self.serve(slot)

    def order_ready(self) -> None:
        """Give the workers the trials that they can be given, suspects first."""
        for slot in sorted(self._floor.slots, key=_suspicion, reverse=True):
            if self._trials.give_up(slot):
                self.serve(slot)
            work, station = slot.work, slot.station
            if work is not None and work.is_unopened:
                self._open_again(slot, work)
            if not station.ready or work is None or work.run is None or work.ordered or work.closing:
                continue
            if self._stations.may_start(station, work):
                self._trials.order(slot)

    def _open_again(self, slot: Slot, work: Work) -> None:
        if self._tally.cut_off:
            self._trials.drop_unopened(slot)
            self.serve(slot)
        elif self._stations.may_start(slot.station, work):
            self._trials.open(slot)

    def make_room(self, station: Station, message: SetConcurrency) -> None:
        """Have as many slots as the worker wants; one that is too many ends with its trial."""
        if message.reason:
            self._display.say(f"{station.device.name}: {message.reason}")
        station.wanted = message.slots
        for slot in [] if self._tally.is_full else station.grow():
            self.serve(slot)
        for slot in station.open:
            if slot.work is None and station.crowded:
                self._stations.dismiss(slot)

    def retire_idle(self) -> None:
        """Dismiss the slots that have no trial when none is to be started any more."""
        if self._tally.is_full:
            if not any(isinstance(waiting, Work) for waiting in self._floor.homeless):
                self._floor.homeless.clear()  # the next agent finds the others again
            for slot in self._floor.slots:
                self.serve(slot)


def _suspicion(slot: Slot) -> int:
    """How much is against the slot's trial."""
    return slot.work.failures if slot.work and slot.work.suspect else 0
