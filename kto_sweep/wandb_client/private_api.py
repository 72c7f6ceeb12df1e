"""All calls to wandb's private API, in one module.

wandb's public agent runs one trial at a time and prints. kto-sweep's agent needs the protocol itself:
register, heartbeat, and the state of a sweep. For this, wandb is pinned to one minor version.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import wandb
from wandb.apis.public import sweeps as sweeps_api
from wandb.errors import UsageError as WandbUsageError
from wandb.sdk import wandb_setup
from wandb.sdk.artifacts._internal_artifact import InternalArtifact
from wandb.sdk.lib import wbauth
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb.sdk.mailbox import MailboxClosedError

from kto_sweep.env_vars import CONNECTION, KEYS, OTHER_WANDB, VARIABLES
from kto_sweep.errors import ServerError, UsageError
from kto_sweep.json_file import parse_json
from kto_sweep.sweep.ref import SweepRef

__all__ = [
    "Command",
    "KeyRejectedError",
    "Login",
    "find_login",
    "heartbeat",
    "is_service_gone",
    "kill_wandb_core",
    "new_artifact",
    "read_curves",
    "read_settings",
    "register_agent",
    "set_run_state",
    "set_sweep_state",
    "stop_run",
    "upsert_sweep",
    "wandb_core_exited",
]


@dataclass(frozen=True)
class Login:
    """The server in wandb's own settings, and whether there is a key for it."""

    base_url: str
    app_url: str
    """The URL for a browser."""
    has_key: bool
    mode: str
    """`online`, `offline` or `disabled`, from WANDB_MODE or `wandb offline` in the folder."""


def find_login() -> Login:
    """The W&B server that wandb itself would use, from environment, netrc and settings files.

    Raises UsageError for an invalid WANDB_ variable.
    """
    settings = read_settings()
    has_key = bool(
        settings.api_key
        or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        or wbauth.read_netrc_auth(host=settings.base_url)
    )
    mode = {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode)  # wandb's old names
    return Login(settings.base_url, settings.app_url, has_key, mode)


def read_settings() -> wandb.Settings:
    """wandb's settings, from its files and the environment.

    Raises UsageError for a variable that wandb rejects, and for a settings file of the current folder that
    changes the connection or a trial's run.
    """
    settings = wandb.Settings(silent=True)
    with contextlib.redirect_stderr(io.StringIO()):  # wandb prints the name of each settings file it reads
        settings.update_from_system_settings()
        _check_folder_settings(settings)
    for name, value in os.environ.items():
        try:
            settings.update_from_env_vars({name: value})
        except (ValueError, WandbUsageError) as error:
            hint = "WANDB_MODE is online, offline or disabled" if name == "WANDB_MODE" else f"unset {name}"
            raise UsageError(f"wandb rejects {name}: {_first_reason(error)}", hint=hint) from error
    return settings


def _check_folder_settings(settings: wandb.Settings) -> None:
    """Raise UsageError if wandb/settings of the current folder has more than `wandb init` and such write."""
    allowed = {*VARIABLES, *OTHER_WANDB} - CONNECTION - {"WANDB_IDENTITY_TOKEN_FILE"}
    # Keys of netrc are for one server each; a key of the shell would be sent to any.
    if "WANDB_BASE_URL" not in os.environ and not os.environ.keys().isdisjoint(KEYS):
        allowed.remove("WANDB_BASE_URL")
    for name, value in settings.read_system_settings()._local_settings.items():
        if name in wandb.Settings.model_fields and f"WANDB_{name.upper()}" not in allowed:
            use = f"export WANDB_BASE_URL={value}, or " if name == "base_url" else ""
            raise UsageError(
                f"{settings.settings_workspace} sets {name}, which could send a key or a run elsewhere",
                hint=f"{use}remove that line of the file",
            )


def _first_reason(error: Exception) -> str:
    """The first problem in pydantic's message, without the value, which may be a key."""
    lines = [line.strip().partition(" [type=")[0] for line in str(error).splitlines()]
    return lines[2] if len(lines) > 2 else lines[0]


def upsert_sweep(
    api: wandb.Api,
    config: Mapping[str, Any],
    *,
    project: str,
    entity: str | None,
    prior_runs: Sequence[str] = (),
) -> tuple[SweepRef, list[str]]:
    """A new sweep on the server that reuses `prior_runs`, and the server's warnings."""
    sweep, warnings = sweeps_api._upsert_sweep(
        api, dict(config), project=project, entity=entity, prior_runs=list(prior_runs)
    )
    owner = sweep["project"]
    return SweepRef(owner["entity"]["name"], owner["name"], sweep["name"]), list(warnings)


@dataclass(frozen=True)
class Command:
    """A command from the server to an agent."""

    kind: str
    """run, resume, stop or exit"""
    run_id: str = ""
    config: Mapping[str, Any] | None = None
    """The trial's configuration, for run and resume."""


def register_agent(api: wandb.Api, ref: SweepRef, host: str) -> str:
    """The id of a new agent of this sweep. Raises ServerError."""
    try:
        agent = sweeps_api._register_agent(api, host, sweep_id=ref.id, project=ref.project, entity=ref.entity)
    except Exception as error:  # wandb has no common error class
        raise ServerError(f"{ref}: the server rejects an agent for this sweep: {error}") from error
    return str(agent["id"])


class KeyRejectedError(ServerError):
    """The server no longer accepts the key."""


_HEARTBEAT = """
mutation Heartbeat($id: ID!, $metrics: JSONString, $runState: JSONString) {
    agentHeartbeat(input: {id: $id, metrics: $metrics, runState: $runState}) { agent { id } commands }
}
"""
_HEARTBEAT_SECONDS = 60.0


def heartbeat(api: wandb.Api, agent_id: str, running: Sequence[str]) -> list[Command]:
    """Report the running runs; returns the server's commands, empty if it cannot be reached.

    Raises ServerError on 404 (the sweep was deleted, or a gateway cannot find the server) and
    KeyRejectedError on 401 and 403. wandb's own function treats these as a response without commands.
    """
    states = json.dumps(dict.fromkeys(running, True))
    variables = {"id": agent_id, "metrics": "{}", "runState": states}
    try:
        answer: Any = api._service_api.execute_graphql(_HEARTBEAT, variables, timeout=_HEARTBEAT_SECONDS)
        return [_command(item) for item in parse_json(answer["agentHeartbeat"]["commands"])]
    except WandbApiFailedError as error:
        status = error.response.http_status if error.response is not None else 0
        if status == HTTPStatus.NOT_FOUND:
            raise ServerError(
                "the sweep was deleted on the server",
                hint="to create a new one: kto-sweep create FILE; trained runs stay in KTO_SWEEP_HOME/runs",
            ) from error
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise KeyRejectedError(f"the server rejects the key (HTTP {status})") from error
        return []
    except Exception:  # wandb has no common error class; or an answer that is none
        return []


def wandb_core_exited() -> bool:
    """Whether wandb's service process (wandb-core) has exited.

    Without this check, its exit looks like a server that does not respond to heartbeats.
    """
    connection = wandb_setup.singleton()._connection
    process = connection._proc if connection is not None else None  # None: WANDB_SERVICE names the process
    return process is not None and process._process.poll() is not None


def is_service_gone(error: BaseException) -> bool:
    """Whether wandb raised `error` because wandb-core has exited."""
    return isinstance(error, ConnectionResetError | BrokenPipeError | MailboxClosedError)


def kill_wandb_core() -> None:
    """Kill wandb's service process; the agent that resumes its runs sends the missing data."""
    connection = wandb_setup.singleton()._connection
    process = connection._proc if connection is not None else None
    if process is not None:
        process._process.kill()
        process._process.wait()


def read_run(
    api: wandb.Api, ref: SweepRef, run_id: str
) -> tuple[str, Mapping[str, Any], Mapping[str, Any]] | None:
    """The state, configuration and summary of a run; None if the server has no such run.

    Raises ServerError if the server does not respond.
    """
    try:
        api.flush()
        run = api.run(f"{ref.entity}/{ref.project}/{run_id}")
        return str(run.state), dict(run.config), dict(run.summary_metrics or {})
    except Exception as error:
        if isinstance(getattr(error, "exc", error), ValueError):
            return None  # wandb's "not found" error, alone or inside a CommError
        raise ServerError(f"could not read run {run_id}: {error}") from error


_RUNS = """
query SweepRuns(
    $project: String!, $entity: String!, $filters: JSONString, $cursor: String, $first: Int, $keys: [String!]
) {
    project(name: $project, entityName: $entity) {
        runs(filters: $filters, after: $cursor, first: $first, order: "+created_at") {
            edges {
                node {
                    name displayName sweepName state createdAt heartbeatAt config summaryMetrics(keys: $keys)
                }
                cursor
            }
            pageInfo { hasNextPage }
        }
    }
}
"""
_RUNS_PER_PAGE = 200


def read_runs(api: wandb.Api, ref: SweepRef, keys: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    """The runs of a sweep, the oldest first, with these keys of their summaries; None: whole summaries.

    wandb.Api's own runs come in pages of 50, each with system metrics, history keys and its user.
    Raises wandb's errors, and ValueError if the project does not exist.
    """
    variables = {
        "project": ref.project,
        "entity": ref.entity,
        "filters": json.dumps({"sweep": ref.id}),
        "first": _RUNS_PER_PAGE,
        "keys": None if keys is None else list(keys),
    }
    cursor, has_more = None, True
    while has_more:
        answer: Any = api._service_api.execute_graphql(_RUNS, {**variables, "cursor": cursor})
        if answer["project"] is None:
            raise ValueError(f"there is no project {ref.entity}/{ref.project}")
        page = answer["project"]["runs"]
        yield from (edge["node"] for edge in page["edges"])
        has_more = page["pageInfo"]["hasNextPage"] and bool(page["edges"])
        cursor = page["edges"][-1]["cursor"] if page["edges"] else None


_CURVES = """
query SweepCurves(
    $project: String!, $entity: String!, $filters: JSONString, $first: Int, $specs: [JSONString!]!
) {
    project(name: $project, entityName: $entity) {
        runs(filters: $filters, first: $first) { edges { node { name sampledHistory(specs: $specs) } } }
    }
}
"""
_RUNS_PER_REQUEST = 25
"""Runs per request for curves; wandb.Api would send a request for each run and metric."""

Curve = Mapping[str, list[float]]
"""`step`, `time` (seconds since the run began) and `value`, of the same length."""


def read_curves(
    api: wandb.Api, ref: SweepRef, run_ids: Sequence[str], metrics: Sequence[str], points: int
) -> dict[str, dict[str, Curve]]:
    """About `points` points of history by run id and metric, without metrics that a run did not log.

    Raises ServerError if the server does not respond.
    """
    specs = [json.dumps({"keys": ["_step", "_runtime", metric], "samples": points}) for metric in metrics]
    curves_by_run: dict[str, dict[str, Curve]] = {}
    for start in range(0, len(run_ids), _RUNS_PER_REQUEST):
        names = list(run_ids[start : start + _RUNS_PER_REQUEST])
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
        except Exception as error:  # wandb has no common error class
            raise ServerError(f"{ref}: could not read the curves of its runs: {error}") from error
        for node in nodes:
            curves = zip(metrics, map(_curve, metrics, node["sampledHistory"] or ()), strict=False)
            curves_by_run[node["name"]] = {metric: curve for metric, curve in curves if curve["value"]}
    return curves_by_run


def _curve(metric: str, rows: Sequence[Mapping[str, Any]] | None) -> Curve:
    """The metric's finite values in step order; W&B sends other values as strings."""
    finite = [row for row in rows or () if isinstance(row.get(metric), int | float)]
    finite.sort(key=lambda row: row["_step"])
    return {
        "step": [row["_step"] for row in finite],
        "time": [row["_runtime"] for row in finite],
        "value": [row[metric] for row in finite],
    }


def _command(raw: Mapping[str, Any]) -> Command:
    args = raw.get("args") or {}
    return Command(
        kind=raw["type"],
        run_id=raw.get("run_id", ""),
        config={name: entry["value"] for name, entry in args.items()},
    )


def set_run_state(api: wandb.Api, ref: SweepRef, run_id: str, state: str) -> bool:
    """Set the state of a sweep's run; returns whether the server supports that, which W&B does not yet.

    The server hands out a `pending` run again.
    """
    try:
        return bool(api.run(f"{ref.entity}/{ref.project}/{run_id}").update_state(state))
    except Exception:  # wandb has no common error class
        return False


_SWEEP_STATE = """
mutation SweepState($id: ID, $state: String, $entityName: String, $projectName: String) {
    upsertSweep(input: {id: $id, state: $state, entityName: $entityName, projectName: $projectName}) {
        sweep { name }
    }
}
"""


def set_sweep_state(api: wandb.Api, ref: SweepRef, state: str) -> None:
    """Move a sweep to RUNNING, PAUSED, FINISHED or CANCELED.

    wandb's own function refuses to cancel a finished sweep, whose last trials may still run.
    Raises ServerError if the server rejects the change.
    """
    try:
        variables = {
            "id": api.sweep(str(ref))._attrs["id"],  # not its name, which is `id` of the public object
            "state": state,
            "entityName": ref.entity,
            "projectName": ref.project,
        }
        api._service_api.execute_graphql(_SWEEP_STATE, variables)
    except Exception as error:  # wandb has no common error class
        full = "cannot be written" in str(error)  # the embedded server's message
        hint = "free some space on the server's disk, then try again" if full else ""
        raise ServerError(f"{ref}: {str(error).strip()}", hint=hint) from error


def stop_run(api: wandb.Api, ref: SweepRef, run_id: str) -> None:
    """Ask the agent of a run to stop it. Raises ServerError if the server rejects that."""
    try:
        api.run(f"{ref.entity}/{ref.project}/{run_id}").stop()
    except Exception as error:  # wandb has no common error class
        raise ServerError(f"run {run_id} could not be stopped: {error}") from error


def new_artifact(
    name: str, kind: str, description: str | None, metadata: Mapping[str, Any] | None
) -> wandb.Artifact:
    """An empty artifact of any type: wandb.Artifact refuses the types that the SDK itself logs."""
    return InternalArtifact(name, kind, description=description, metadata=dict(metadata or {}))
