"""One trial of no sweep: its slot is given it, once, where a sweep's slots ask the server."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kto_sweep.agent.display import Display
from kto_sweep.agent.events import Events, Lost, Told
from kto_sweep.agent.slots import Slot
from kto_sweep.agent.stations import Stations
from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.private_api import Command

if TYPE_CHECKING:
    import wandb


class OneTrial(Stations):
    """Employs a worker for one trial."""

    def __init__(
        self,
        api: "wandb.Api",
        ref: SweepRef,
        home: Home,
        display: Display,
        events: Events,
        trial: Command,
    ) -> None:
        super().__init__(api, ref, home, display, events)
        self._trial: Command | None = trial
        self._told = events

    def ask(self, slot: Slot, running: Sequence[str], *, soon: bool = False) -> None:
        """Hand out the trial; a slot that asks again without it could not open its run."""
        if running:
            return
        if self._trial is None:
            self._told.put(Lost(ServerError("the run could not be begun", hint="the line above says why")))
            return
        self._told.put(Told(slot, [self._trial]))
        self._trial = None
