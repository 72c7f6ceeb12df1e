"""Workers that hang: one that has long said nothing is spoken of, and in the end taken for dead."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kto_sweep.agent.display import Display
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.looks import Looks
from kto_sweep.agent.slots import Station
from kto_sweep.agent.worker_process import WorkerProcess
from kto_sweep.protocol import Done, Failed, Message, Metrics, Preparing
from kto_sweep.text import duration

SPOKEN_SECONDS = 600.0
"""A worker that has something to do and says nothing for so long is spoken of."""
UNREADY_SECONDS = 1800.0
"""One that is not ready after so long is ended: to load its libraries takes a minute on a slow disk."""
KILLED_SECONDS = 3600.0
"""One that takes steps and then says nothing for so long hangs, unless it was nearly as still before."""
DEATH_SECONDS = 60.0
"""One that was ended for it and is still there after so long will not go."""
TIMES = 20.0
"""It hangs only in a pause so many times as long as the longest before."""


@dataclass
class _Pause:
    """How long a worker has said nothing, in seconds."""

    worker: WorkerProcess | None
    now: float = 0.0
    longest: float = 0.0
    """Before."""
    stepping: bool = False
    """It takes steps; what comes before, such as loading a model, may take any time."""
    spoken_of: bool = False
    killed: bool = False


class Stillness:
    """Watches the workers of a floor."""

    def __init__(
        self,
        floor: Floor,
        display: Display,
        give_up: Callable[[Station, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`give_up` is called with a station whose worker cannot even be killed, and with the reason."""
        self._floor = floor
        self._display = display
        self._give_up = give_up
        self._looks = Looks(clock)
        self._pauses: dict[str, _Pause] = {}

    def heard(self, station: Station, message: Message) -> None:
        """Take note of a sign of life."""
        pause = self._pause(station)
        if pause.stepping:
            pause.longest = max(pause.longest, pause.now)
        pause.now, pause.spoken_of = 0.0, False
        match message:
            case Metrics():
                pause.stepping = True
            case Preparing() | Done() | Failed():
                pause.stepping = False

    def watch(self) -> None:
        """Look at all workers. Raises what `give_up` does."""
        since = self._looks.since()
        for station in self._floor.stations:
            pause = self._pause(station)
            waited_for = pause.killed or not station.ready or station.aboard
            if station.worker is None or not waited_for:
                pause.now = 0.0
                continue
            pause.now += since
            self._judge(station, pause)

    def _pause(self, station: Station) -> _Pause:
        """Of the present worker: each begins anew."""
        pause = self._pauses.get(station.device.name)
        if pause is None or pause.worker is not station.worker:
            pause = self._pauses[station.device.name] = _Pause(station.worker)
        return pause

    def _judge(self, station: Station, pause: _Pause) -> None:
        worker = station.worker
        assert worker is not None
        if pause.killed:
            if pause.now > DEATH_SECONDS:
                name = station.device.name
                self._give_up(station, f"the worker on {name} does not end, though it was killed")
            return
        if pause.now > SPOKEN_SECONDS and not pause.spoken_of:
            pause.spoken_of = True
            runs = ", ".join(work.run_id for work in station.aboard)
            whose = f"the worker of {runs}" if runs else "the worker, which is not ready yet,"
            state = (
                "was stopped by a signal" if worker.is_held else f"has said nothing for {duration(pause.now)}"
            )
            self._display.say(f"{station.device.name}: {whose} {state}; its log: {worker.log}")
        hangs = pause.stepping and pause.now > max(KILLED_SECONDS, TIMES * pause.longest)
        if (hangs or (not station.ready and pause.now > UNREADY_SECONDS)) and not worker.is_held:
            how = f"hangs since {duration(pause.now)}" if station.ready else "does not get ready"
            self._display.say(f"{station.device.name}: the worker {how}: it is ended")
            pause.now, pause.killed = 0.0, True
            worker.kill()
