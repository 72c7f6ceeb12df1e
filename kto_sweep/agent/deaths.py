"""Workers that die: another is employed for the same trials, unless the device or one of them is to blame."""

from kto_sweep.agent.blame import SUSPICIOUS, Death, cause_of_death, is_hardware, is_retried, is_sick
from kto_sweep.agent.display import Display
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.places import Places
from kto_sweep.agent.slots import Station, Work
from kto_sweep.agent.stations import IDLE_DEATHS, PAUSE_SECONDS, Stations
from kto_sweep.agent.trials import Trials
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.errors import KtoSweepError


class Deaths:
    """Sees to what a dead worker has left."""

    def __init__(
        self, floor: Floor, stations: Stations, trials: Trials, places: Places, display: Display
    ) -> None:
        self._floor = floor
        self._stations = stations
        self._trials = trials
        self._places = places
        self._display = display
        self._deaths: list[Death] = []
        self._culprits: set[str] = set()

    def bury(self, station: Station, worker: WorkerProcess, status: int) -> None:
        """Replace a dead worker, or give up its device or a trial. Raises KtoSweepError when none is left."""
        started = station.ready or status < 0
        how, words = self._stations.bury(station, worker, status)
        aboard = station.aboard
        for work in aboard:
            work.fail_here()
        to_blame = [work for work in aboard if work.suspect] or aboard
        if station.device.visible and started:  # the others have tries of their own
            names = frozenset(work.run_id for work in to_blame)
            self._deaths.append(Death(station.device.name, names, is_hardware(words)))
        others = any(other is not station and not other.retired for other in self._floor.stations)
        sick = is_sick(station.device.name, self._deaths, self._culprits, others=others)
        if sick or station.idle_deaths >= IDLE_DEATHS:
            self._retire(station, f"the worker on {station.device.name} ended with {how}:\n{words}", worker)
            return
        why = station.last_words.partition("\n")[0]
        told = f"{how} ({why})" if why else how
        when = "" if started else f" in {PAUSE_SECONDS:.0f} s"
        self._display.say(f"{station.device.name}: the worker ended with {told}; starting another{when}")
        cause = cause_of_death(words)
        if len(aboard) == 1 and not is_retried(cause, aboard[0].failures):
            self._convict(station, aboard[0], cause, f"the last with {how}; log: {worker.log}")
        for work in aboard:
            work.suspect = len(aboard) > 1 and work.failures >= SUSPICIOUS
        if not station.ended and started:
            self._stations.employ(station)
        elif not station.ended:
            self._stations.employ_later(station)

    def worked(self, station: Station) -> None:
        """Take note that a trial has ended as it should: what died on the device before is forgotten."""
        station.idle_deaths = 0
        self._deaths = [death for death in self._deaths if death.device != station.device.name]

    def give_up(self, station: Station, why: str) -> None:
        """Use a device no more whose worker does not end. Raises KtoSweepError when none is left."""
        worker, station.worker, station.ready = station.worker, None, False
        assert worker is not None
        for work in station.aboard:
            work.fail_here()
        self._retire(station, why, worker)

    def bury_last(self, station: Station, worker: WorkerProcess, status: int) -> None:
        """Replace nobody: the agent is leaving."""
        self._stations.bury(station, worker, status)
        for work in station.aboard:
            work.fail_here()

    def _convict(self, station: Station, work: Work, cause: str, how: str) -> None:
        """End the trial that no worker survives."""
        slot = station.holder(work.run_id)
        assert slot is not None
        self._culprits.add(work.run_id)
        self._trials.fail(slot, cause, f"{work.failures} workers ended under this trial, {how}")

    def _retire(self, station: Station, why: str, worker: WorkerProcess) -> None:
        """Use a device no more; its trials move to another. Raises KtoSweepError when there is none."""
        station.retired = True
        look = f"nvidia-smi -i {station.device.visible}   (its whole log: {worker.log})"
        hint = look if station.device.visible else f"its whole log: {worker.log}"
        if all(other.retired for other in self._floor.stations):
            raise KtoSweepError(why, hint=hint)
        self._display.say(f"{station.device.name} is used no more: {why}\n  Look: {hint}")
        self._places.rehouse(station)
