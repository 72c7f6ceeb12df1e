"""Where an agent's trials come from: a sweep's server, or one trial that needs none."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kto_sweep.agent.lease import OPEN_STATES
from kto_sweep.errors import ServerError
from kto_sweep.run_record import home_id
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import OWNER
from kto_sweep.wandb_client.connection import is_deleted
from kto_sweep.wandb_client.private_api import Command, heartbeat, read_run, register_agent

if TYPE_CHECKING:
    import wandb

    from kto_sweep.home import Home


class TrialSource(Protocol):
    """What a slot asks for trials. Called from several threads."""

    @property
    def ref(self) -> SweepRef:
        """Where the trials' runs belong; without an id when they are of no sweep."""

    def register(self, host: str) -> str:
        """The id of a new agent, which is a slot's. Raises ServerError."""

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        """What a slot with these runs is to do. Raises ServerError."""

    def is_gone(self) -> bool:
        """Whether asking again after a ServerError cannot help."""

    def taken_away(self, run_id: str) -> str:
        """Why this box may no longer continue a run that it has started; empty when it may."""


class SweepSource:
    """The trials of a sweep, from its server."""

    def __init__(self, api: "wandb.Api", ref: SweepRef, home: "Home") -> None:
        self.ref = ref
        self._api = api
        self._home_id = home_id(home)
        self._is_known = False
        """The server has taken a slot as an agent before."""

    def register(self, host: str) -> str:
        """As TrialSource says."""
        agent_id = register_agent(self._api, self.ref, host)
        self._is_known = True
        return agent_id

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        """As TrialSource says."""
        return heartbeat(self._api, agent_id, running)

    def is_gone(self) -> bool:
        """The sweep was deleted, or has taken no slot yet.

        A gateway whose W&B is being replaced answers 404 and 403 as well.
        """
        return not self._is_known or is_deleted(self._api, self.ref)

    def taken_away(self, run_id: str) -> str:
        """As TrialSource says."""
        run = read_run(self._api, self.ref, run_id)
        if run is None:
            return "it was deleted on the server"
        state, config, _ = run
        if state not in OPEN_STATES:
            return f"the server has it as {state}"
        return "" if config.get(OWNER) == self._home_id else "another box has started it since"


class SingleTrialSource:
    """One trial, which is of no sweep."""

    def __init__(self, ref: SweepRef, run_id: str, config: Mapping[str, Any]) -> None:
        self.ref = ref
        self._command: Command | None = Command("run", run_id, config)

    def register(self, host: str) -> str:
        """There is no server to register at."""
        return "single"

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        """The trial, once: a slot that asks again without it could not open its run."""
        if running:
            return []
        if self._command is None:
            raise ServerError("the run could not be started", hint="the line above says why")
        command, self._command = self._command, None
        return [command]

    def is_gone(self) -> bool:
        """There is no other trial."""
        return True

    def taken_away(self, run_id: str) -> str:
        """Never: no server schedules this trial."""
        return ""
