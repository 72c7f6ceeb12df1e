"""Reads sweeps and their runs as plain data through wandb.Api, from W&B or the embedded server."""

import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from kto_sweep.alerts import without_alert_rules
from kto_sweep.errors import FailureCause, ServerError
from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.search.objectives import metric_of
from kto_sweep.search.options import read_options
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.trial_rows import TrialRow, summary_keys, trial_record
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.sweep_file.command import read_command
from kto_sweep.sweep_file.sweep_config import expected_trials
from kto_sweep.text import is_number
from kto_sweep.wandb_client.connection import Target, error_text, is_not_found, server_time
from kto_sweep.wandb_client.embedded_reader import NotFoundError, SweepRows, read_rows

if TYPE_CHECKING:
    import wandb


def read_sweep(
    api: "wandb.Api | None",
    target: Target,
    ref: SweepRef,
    progress: Callable[[int], None] = lambda _: None,
    metrics: Collection[str] | None = (),
) -> SweepView:
    """The sweep with all its trials, in order of creation; `progress` gets the number of those read.

    Their summaries have what states and rankings depend on, and these `metrics`; None: everything.
    `api` may be None for the embedded server of this box.
    Raises ServerError if the sweep does not exist or the server does not respond.
    """
    try:
        if target.is_embedded:
            key = str(api.api_key) if api is not None else target.key
            return _view(target, ref, read_rows(target.base_url, key, ref, metrics, progress))
        assert api is not None
        return _view(target, ref, _read_from_wandb(api, target, ref, progress, metrics))
    except ServerError:
        raise
    except Exception as error:  # wandb has no common error class
        raise _explained(error, target, ref) from error


def _read_from_wandb(
    api: "wandb.Api",
    target: Target,
    ref: SweepRef,
    progress: Callable[[int], None],
    metrics: Collection[str] | None,
) -> SweepRows:
    from kto_sweep.wandb_client.private_api import read_runs

    sweep = api.sweep(str(ref))
    sweep.load(force=True)  # wandb.Api keeps sweeps
    config = sweep.config if isinstance(sweep.config, dict) else yaml.safe_load(sweep.config)
    if not isinstance(config, dict):
        raise ValueError("its configuration is no mapping")
    names = [objective.name for objective in read_options(config, []).objectives]
    own = (metric_of(config, ()) or {}).get("name", DEFAULT_METRIC)
    keys = None if metrics is None else summary_keys((own, *names, *metrics))
    pauses = read_options(config, []).asha is not None
    trials = []
    for run in read_runs(api, ref, keys):
        trials.append(_trial(run, ref, pauses=pauses))
        progress(len(trials))
    now = server_time(target)  # after the runs: none of their heartbeats is newer
    updated = _unix_seconds(sweep._attrs.get("updatedAt"))
    return SweepRows(config, str(sweep.state), updated, now, tuple(trials))


def _view(target: Target, ref: SweepRef, rows: SweepRows) -> SweepView:
    config = rows.config
    space, _ = parse_space(without_alert_rules(config.get("parameters") or {}))
    options = read_options(config, [])
    metric = metric_of(config, options.objectives) or {}
    pauses, target_value = options.asha is not None, metric.get("target")
    return SweepView(
        ref=ref,
        url=ref.url(target.app_url),
        name=str(config.get("name") or ref.id),
        state=rows.state.upper(),
        method=str(config.get("method", "")),
        metric=metric.get("name", DEFAULT_METRIC),
        goal=metric.get("goal", "minimize"),
        space=space or Space(()),
        expected=expected_trials(config, space) if space else config.get("run_cap"),
        trials=rows.trials,
        objectives=options.objectives,
        pauses_trials=pauses,
        command=read_command(config),
        config=config,
        target=float(target_value) if is_number(target_value) else None,
        stops_trials=pauses or bool(config.get("early_terminate")),
        updated=rows.updated,
        now=rows.now,
    )


def require_sweep(api: "wandb.Api", target: Target, ref: SweepRef) -> None:
    """Raises ServerError if the sweep does not exist or the server does not respond."""
    try:
        api.sweep(str(ref)).load(force=True)
    except Exception as error:  # wandb has no common error class
        raise _explained(error, target, ref) from error


def _explained(error: Exception, target: Target, ref: SweepRef) -> ServerError:
    if isinstance(error, NotFoundError) or is_not_found(error):
        return ServerError(
            f"{target} has no sweep {ref}",
            hint="kto-sweep status   (without a name: the last sweep used on this box)",
        )
    return ServerError(
        f"could not read the sweep {ref} from {target}: {error_text(error)}",
        hint=f"try again later, or with another key: {target.key_hint}",
    )


def _trial(run: Mapping[str, Any], ref: SweepRef, *, pauses: bool) -> TrialRecord:
    """The trial of a run as W&B's GraphQL describes it."""
    summary = json.loads(run["summaryMetrics"] or "{}")
    preempted = summary.get("failure/cause") == FailureCause.PREEMPTED
    row = TrialRow(
        run_id=run["name"],
        name=run["displayName"] or run["name"],
        state=run["state"],
        created=_unix_seconds(run["createdAt"]),
        heartbeat=_unix_seconds(run["heartbeatAt"]),
        # A paused trial and a requeued one are both in state preempted; only the latter has a cause.
        is_paused=pauses and not preempted,
        is_prior_run=run["sweepName"] not in {None, ref.id},
        value=None,
        has_value=False,
        config=json.loads(run["config"] or "{}"),
        summary=summary,
    )
    return trial_record(row, None, None)


def _unix_seconds(text: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
