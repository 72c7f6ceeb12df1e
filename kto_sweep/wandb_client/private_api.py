"""The calls to wandb that are not public, all of them, in one place.

wandb's public functions run one trial at a time and print as they go. A supervisor needs the agent protocol
itself: register, heartbeat, and the state of a sweep. wandb is pinned to one minor version for this.
"""

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import wandb
from wandb.apis.public import sweeps as sweeps_api
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from kto_sweep.errors import ServerError, UsageError
from kto_sweep.search.options import BLOCK
from kto_sweep.sweep.ref import SweepRef

__all__ = [
    "Command",
    "Login",
    "RefusedError",
    "create_sweep",
    "end_service",
    "find_login",
    "heartbeat",
    "is_embedded",
    "read_curves",
    "register_agent",
    "service_has_ended",
    "set_run_state",
    "set_sweep_state",
]


@dataclass(frozen=True)
class Login:
    """Where W&B's own rules lead, and whether there is a key for it."""

    base_url: str
    app_url: str
    """The address that people open."""
    has_key: bool
    mode: str
    """`online`; `offline` or `disabled` by WANDB_MODE, or as `wandb offline` has set it for this folder."""


def find_login() -> Login:
    """The W&B server and key that wandb itself would use: environment, netrc, settings files."""
    settings = wandb.Settings(silent=True)
    with contextlib.redirect_stderr(io.StringIO()):  # wandb announces each settings file that it reads
        settings.update_from_system_settings()
    try:
        settings.update_from_env_vars(dict(os.environ))
    except ValueError as error:
        raise UsageError(
            f"wandb does not take a WANDB_ variable of the environment: {_first_reason(error)}",
            hint="unset or mend it; WANDB_MODE is online, offline or disabled",
        ) from error
    has_key = bool(
        settings.api_key
        or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        or wbauth.read_netrc_auth(host=settings.base_url)
    )
    mode = {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode)  # their old names
    return Login(settings.base_url, settings.app_url, has_key, mode)


def _first_reason(error: ValueError) -> str:
    """What pydantic found, without its lines around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return ": ".join(lines[1:3]) or str(error)


def create_sweep(
    api: wandb.Api,
    config: Mapping[str, Any],
    *,
    project: str,
    entity: str | None,
    prior_runs: Sequence[str] = (),
) -> tuple[SweepRef, list[str]]:
    """The registered sweep, which counts `prior_runs` as its own too, and the server's warnings."""
    made, warnings = sweeps_api._upsert_sweep(
        api, dict(config), project=project, entity=entity, prior_runs=list(prior_runs)
    )
    owner = made["project"]
    return SweepRef(owner["entity"]["name"], owner["name"], made["name"]), list(warnings)


_FEATURES = "query ServerFeatures { serverInfo { features { name isEnabled } } }"


def is_embedded(api: wandb.Api) -> bool:
    """Whether the server is an embedded one, of this box or of another: it reads the block of a sweep."""
    try:
        answer: Any = api._service_api.execute_graphql(_FEATURES, {})
        return any(each["name"] == BLOCK for each in answer["serverInfo"]["features"])
    except Exception:  # wandb has no one class for what a server can answer; an old one has no such field
        return False


@dataclass(frozen=True)
class Command:
    """What the server tells an agent to do."""

    kind: str
    """run, resume, stop or exit"""
    run_id: str = ""
    config: Mapping[str, Any] | None = None
    """The trial's configuration, for run and resume."""


def register_agent(api: wandb.Api, ref: SweepRef, host: str) -> str:
    """The id of a new agent of this sweep."""
    try:
        agent = sweeps_api._register_agent(api, host, sweep_id=ref.id, project=ref.project, entity=ref.entity)
    except Exception as error:  # wandb has no one class for what a server can answer
        raise ServerError(f"{ref}: the server takes no agent for this sweep: {error}") from error
    return str(agent["id"])


class RefusedError(ServerError):
    """The server does not take the key any more."""


_HEARTBEAT = """
mutation Heartbeat($id: ID!, $metrics: JSONString, $runState: JSONString) {
    agentHeartbeat(input: {id: $id, metrics: $metrics, runState: $runState}) { agent { id } commands }
}
"""
_HEARTBEAT_SECONDS = 60.0


def heartbeat(api: wandb.Api, agent_id: str, running: Sequence[str]) -> list[Command]:
    """What the server wants done, given the runs that are alive; empty too when it could not be reached.

    Raises ServerError when the server answers 404: the sweep was deleted, or a gateway does not reach it;
    RefusedError at 401 and 403. wandb's own function takes those two for an answer without commands.
    """
    states = json.dumps(dict.fromkeys(running, True))
    variables = {"id": agent_id, "metrics": "{}", "runState": states}
    try:
        answer: Any = api._service_api.execute_graphql(_HEARTBEAT, variables, timeout=_HEARTBEAT_SECONDS)
    except WandbApiFailedError as error:
        status = error.response.http_status if error.response is not None else 0
        if status == HTTPStatus.NOT_FOUND:
            raise ServerError(
                "the sweep was deleted on the server",
                hint="kto-sweep create FILE makes it anew; what was trained stays in KTO_SWEEP_HOME/runs",
            ) from error
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise RefusedError(f"the server refuses the key (HTTP {status})") from error
        return []
    except Exception:  # wandb has no one class for what can go wrong on the way
        return []
    return [_command(item) for item in json.loads(answer["agentHeartbeat"]["commands"])]


def service_has_ended() -> bool:
    """Whether the process that wandb does its work in (wandb-core) is gone.

    Whoever only waits hears nothing of that: a heartbeat then looks like one that the server did not answer.
    """
    connection = wandb_setup.singleton()._connection
    process = connection._proc if connection is not None else None  # None: somebody else's, by WANDB_SERVICE
    return process is not None and process._process.poll() is not None


def end_service() -> None:
    """Kill that process: what it has not sent yet is sent by whoever goes on with its runs."""
    connection = wandb_setup.singleton()._connection
    process = connection._proc if connection is not None else None
    if process is not None:
        process._process.kill()
        process._process.wait()


def read_run(
    api: wandb.Api, ref: SweepRef, run_id: str
) -> tuple[str, Mapping[str, Any], Mapping[str, Any]] | None:
    """The state, configuration and summary of a run; None when the server has no such run.

    Raises ServerError when it cannot be asked.
    """
    try:
        api.flush()
        run = api.run(f"{ref.entity}/{ref.project}/{run_id}")
        return str(run.state), dict(run.config), dict(run.summary_metrics or {})
    except Exception as error:
        if isinstance(getattr(error, "exc", error), ValueError):
            return None  # how wandb says that it was not found, within a CommError or not
        raise ServerError(f"run {run_id} cannot be read: {error}") from error


_CURVES = """
query SweepCurves(
    $project: String!, $entity: String!, $filters: JSONString, $first: Int, $specs: [JSONString!]!
) {
    project(name: $project, entityName: $entity) {
        runs(filters: $filters, first: $first) { edges { node { name sampledHistory(specs: $specs) } } }
    }
}
"""
_CURVES_AT_ONCE = 25
"""Runs whose curves are asked for in one request; wandb.Api would make one for each run and metric."""

Curve = Mapping[str, list[float]]
"""`step`, `time` (seconds since the run began) and `value`, of the same length."""


def read_curves(
    api: wandb.Api, ref: SweepRef, run_ids: Sequence[str], metrics: Sequence[str], points: int
) -> dict[str, dict[str, Curve]]:
    """By run and metric, about so many points of its history; a metric that a run has not logged is left out.

    Raises ServerError when the server does not tell.
    """
    specs = [json.dumps({"keys": ["_step", "_runtime", metric], "samples": points}) for metric in metrics]
    found: dict[str, dict[str, Curve]] = {}
    for start in range(0, len(run_ids), _CURVES_AT_ONCE):
        names = list(run_ids[start : start + _CURVES_AT_ONCE])
        variables = {
            "project": ref.project,
            "entity": ref.entity,
            "filters": json.dumps({"name": {"$in": names}}),
            "first": len(names),
            "specs": specs,
        }
        try:
            answer: Any = api._service_api.execute_graphql(_CURVES, variables)
            nodes = [edge["node"] for edge in answer["project"]["runs"]["edges"]]
        except Exception as error:  # wandb has no one class for what a server can answer
            raise ServerError(f"{ref}: the curves of its runs cannot be read: {error}") from error
        for node in nodes:
            curves = zip(metrics, map(_curve, metrics, node["sampledHistory"] or ()), strict=False)
            found[node["name"]] = {metric: curve for metric, curve in curves if curve["value"]}
    return found


def _curve(metric: str, rows: Sequence[Mapping[str, Any]] | None) -> Curve:
    """Values that are not finite come as text and are left out."""
    kept = [row for row in rows or () if isinstance(row.get(metric), int | float)]
    kept.sort(key=lambda row: row["_step"])
    return {
        "step": [row["_step"] for row in kept],
        "time": [row["_runtime"] for row in kept],
        "value": [row[metric] for row in kept],
    }


def _command(raw: Mapping[str, Any]) -> Command:
    args = raw.get("args") or {}
    return Command(
        kind=raw["type"],
        run_id=raw.get("run_id", ""),
        config={name: entry["value"] for name, entry in args.items()},
    )


SweepState = Literal["RUNNING", "PAUSED", "FINISHED", "CANCELED"]


def set_run_state(api: wandb.Api, ref: SweepRef, run_id: str, state: str) -> bool:
    """Whether the server has put this run of a sweep into another state; W&B itself does not, for now.

    One that is made `pending` is handed out again.
    """
    try:
        return bool(api.run(f"{ref.entity}/{ref.project}/{run_id}").update_state(state))
    except Exception:  # wandb has no one class for what a server can refuse
        return False


def set_sweep_state(api: wandb.Api, ref: SweepRef, state: SweepState) -> None:
    """Move a sweep to RUNNING, PAUSED, FINISHED or CANCELED.

    Raises ServerError when the server or the sweep's present state refuses.
    """
    try:
        sweeps_api._set_sweep_state(api, ref.id, state, entity=ref.entity, project=ref.project)
    except Exception as error:  # wandb raises a bare Exception for a refused change of state
        full = "cannot be written" in str(error)  # the embedded server's words
        hint = "free some space on the server's disk, then type it again" if full else ""
        raise ServerError(f"{ref}: {str(error).strip()}", hint=hint) from error
