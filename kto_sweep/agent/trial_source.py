"""Sources of an agent's trials: a sweep's server, or a single trial without a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from kto_sweep.agent.lease import OPEN_STATES
from kto_sweep.errors import ServerError
from kto_sweep.run_record import home_id
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import BUSY, OWNER
from kto_sweep.sweep_file.command import SweepCommand, with_flags
from kto_sweep.wandb_client.connection import is_deleted
from kto_sweep.wandb_client.private_api import Command, heartbeat, read_run, register_agent

if TYPE_CHECKING:
    import wandb

    from kto_sweep.home import Home


class TrialSource(Protocol):
    """Hands out trials to slots. Called from several threads."""

    @property
    def ref(self) -> SweepRef:
        """Entity, project and sweep of the trials' runs; the id is empty without a sweep."""

    def register(self, host: str) -> str:
        """The id of a new agent for one slot. Raises ServerError."""

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        """The server's commands to a slot with these runs. Raises ServerError."""

    def is_gone(self) -> bool:
        """Whether retrying after a ServerError is useless."""

    def why_lost(self, run_id: str) -> str:
        """Why this box may no longer continue a run that it started; empty if it may."""

    def busy_entries(self, run_id: str) -> Sequence[object]:
        """The entries of a run's earlier attempts under BUSY in its summary. Raises ServerError."""


class SweepSource:
    """The trials of a sweep, from its server."""

    def __init__(self, api: "wandb.Api", ref: SweepRef, home: "Home", command: SweepCommand) -> None:
        """`command`: the sweep's, whose flags are part of every trial's configuration."""
        self.ref = ref
        self._command = command
        self._api = api
        self._home_id = home_id(home)
        self._is_known = False
        """The server has accepted an agent before."""

    def register(self, host: str) -> str:
        """See TrialSource."""
        agent_id = register_agent(self._api, self.ref, host)
        self._is_known = True
        return agent_id

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        """See TrialSource."""
        return [self._with_flags(command) for command in heartbeat(self._api, agent_id, running)]

    def _with_flags(self, command: Command) -> Command:
        if command.config is None:
            return command
        return replace(command, config=with_flags(command.config, self._command.expand(command.config)))

    def is_gone(self) -> bool:
        """Whether the sweep was deleted, or never accepted an agent.

        An error alone does not prove it: a gateway in front of a restarting W&B also returns 404 and 403.
        """
        return not self._is_known or is_deleted(self._api, self.ref)

    def why_lost(self, run_id: str) -> str:
        """See TrialSource."""
        run = read_run(self._api, self.ref, run_id)
        if run is None:
            return "it was deleted on the server"
        state, config, _ = run
        if state not in OPEN_STATES:
            return f"its state on the server is {state}"
        return "" if config.get(OWNER) == self._home_id else "another box took it over"

    def busy_entries(self, run_id: str) -> Sequence[object]:
        """See TrialSource."""
        run = read_run(self._api, self.ref, run_id)
        entries = run[2].get(BUSY) if run is not None else None
        return entries if isinstance(entries, list) else ()


class SingleTrialSource:
    """One trial without a sweep."""

    def __init__(self, ref: SweepRef, run_id: str, config: Mapping[str, Any]) -> None:
        self.ref = ref
        self._command: Command | None = Command("run", run_id, config)

    def register(self, host: str) -> str:
        """A placeholder: there is no server to register with."""
        return "single"

    def heartbeat(self, agent_id: str, running: Sequence[str]) -> list[Command]:
        """The trial, once; a slot that asks again could not open the trial's run."""
        if running:
            return []
        if self._command is None:
            raise ServerError("the run could not be started", hint="the line above says why")
        command, self._command = self._command, None
        return [command]

    def is_gone(self) -> bool:
        """Always: there is no other trial."""
        return True

    def why_lost(self, run_id: str) -> str:
        """Never: no server schedules this trial."""
        return ""

    def busy_entries(self, run_id: str) -> Sequence[object]:
        """None: no sweep adds them up."""
        return ()
