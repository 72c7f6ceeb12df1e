"""Workers that hang: one that has long said nothing is spoken of, and in the end taken for dead."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kto_sweep.agent.display import Display
from kto_sweep.agent.floor import Floor
from kto_sweep.agent.slots import Station
from kto_sweep.protocol import Done, Failed, Message, Metrics, Preparing, Ready
from kto_sweep.wording import duration

SPOKEN_SECONDS = 600.0
"""A worker with trials that says nothing for so long is spoken of."""
KILLED_SECONDS = 3600.0
"""One that takes steps and then says nothing for so long hangs, unless it was nearly as still before."""
TIMES = 20.0
"""It hangs only in a pause so many times as long as the longest before."""
MOST_AT_ONCE = 5.0
"""Seconds between two looks that count: while this process stood still itself it could hear nobody."""


@dataclass
class _Pause:
    """How long a worker has said nothing, in seconds."""

    now: float = 0.0
    longest: float = 0.0
    """Before."""
    stepping: bool = False
    """It takes steps; what comes before, such as loading a model, may take any time."""
    spoken_of: bool = False


class Stillness:
    """Watches the workers of a floor."""

    def __init__(self, floor: Floor, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._floor = floor
        self._display = display
        self._clock = clock
        self._looked = clock()
        self._pauses: dict[str, _Pause] = {}

    def heard(self, station: Station, message: Message) -> None:
        """Take note of a sign of life."""
        pause = self._pauses.setdefault(station.device.name, _Pause())
        if pause.stepping:
            pause.longest = max(pause.longest, pause.now)
        pause.now, pause.spoken_of = 0.0, False
        match message:
            case Ready():
                self._pauses[station.device.name] = _Pause()
            case Metrics():
                pause.stepping = True
            case Preparing() | Done() | Failed():
                pause.stepping = False

    def watch(self) -> None:
        """Look at all workers."""
        now = self._clock()
        since, self._looked = min(now - self._looked, MOST_AT_ONCE), now
        for station in self._floor.stations:
            pause = self._pauses.setdefault(station.device.name, _Pause())
            if not station.aboard or station.worker is None:
                pause.now = 0.0
                continue
            pause.now += since
            self._judge(station, pause)

    def _judge(self, station: Station, pause: _Pause) -> None:
        worker = station.worker
        assert worker is not None
        if pause.now > SPOKEN_SECONDS and not pause.spoken_of:
            pause.spoken_of = True
            state = (
                "was stopped by a signal" if worker.is_held else f"has said nothing for {duration(pause.now)}"
            )
            runs = ", ".join(work.run_id for work in station.aboard)
            self._display.say(f"{station.device.name}: the worker of {runs} {state}; its log: {worker.log}")
        if pause.stepping and pause.now > max(KILLED_SECONDS, TIMES * pause.longest) and not worker.is_held:
            self._display.say(
                f"{station.device.name}: the worker hangs since {duration(pause.now)}: it is ended"
            )
            pause.now = 0.0
            worker.kill()
