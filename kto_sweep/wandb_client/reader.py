"""Reads sweeps and their runs as plain data through wandb.Api, from W&B or the embedded server."""

from collections.abc import Callable
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
from kto_sweep.sweep.view import DEVICE, OWNER, SweepView, TrialRecord, busy_spans, seconds_of
from kto_sweep.sweep_file.command import read_command
from kto_sweep.sweep_file.sweep_config import expected_trials
from kto_sweep.text import is_number
from kto_sweep.trial import trial_config
from kto_sweep.wandb_client.connection import Target, error_text, is_not_found, server_time

if TYPE_CHECKING:
    import wandb


def read_sweep(
    api: "wandb.Api", target: Target, ref: SweepRef, progress: Callable[[int], None] = lambda _: None
) -> SweepView:
    """The sweep with all its trials, in order of creation; `progress` gets the number of those read.

    Raises ServerError if the sweep does not exist or the server does not respond.
    """
    api.flush()  # drops wandb.Api's cached runs; `force` below drops the cached sweep
    try:
        sweep = api.sweep(str(ref))
        sweep.load(force=True)
        runs = api.runs(f"{ref.entity}/{ref.project}", filters={"sweep": ref.id}, lazy=False)
        trials = []
        for run in runs:  # wandb.Api reads them in pages
            trials.append(run)
            progress(len(trials))
        config = sweep.config if isinstance(sweep.config, dict) else yaml.safe_load(sweep.config)
        if not isinstance(config, dict):
            raise ValueError("its configuration is no mapping")
        now = server_time(target)  # after the runs: none of their heartbeats is newer
    except Exception as error:  # wandb has no common error class
        if not is_not_found(error):
            raise ServerError(
                f"could not read the sweep {ref} from {target}: {error_text(error)}",
                hint=f"try again later, or with another key: {target.key_hint}",
            ) from error
        raise ServerError(
            f"{target} has no sweep {ref}",
            hint="kto-sweep status   (without a name: the last sweep used on this box)",
        ) from error
    space, _ = parse_space(without_alert_rules(config.get("parameters") or {}))
    options = read_options(config, [])
    metric = metric_of(config, options.objectives) or {}
    pauses, target_value = options.asha is not None, metric.get("target")
    return SweepView(
        ref=ref,
        url=ref.url(target.app_url),
        name=str(config.get("name") or ref.id),
        state=str(sweep.state).upper(),
        method=str(config.get("method", "")),
        metric=metric.get("name", DEFAULT_METRIC),
        goal=metric.get("goal", "minimize"),
        space=space or Space(()),
        expected=expected_trials(config, space) if space else config.get("run_cap"),
        trials=tuple(_trial(run, ref, pauses=pauses) for run in trials),
        objectives=options.objectives,
        pauses_trials=pauses,
        command=read_command(config),
        config=config,
        target=float(target_value) if is_number(target_value) else None,
        stops_trials=pauses or bool(config.get("early_terminate")),
        updated=_unix_seconds(sweep._attrs.get("updatedAt")),
        now=now,
    )


def _trial(run: Any, ref: SweepRef, *, pauses: bool) -> TrialRecord:
    summary = dict(run.summary_metrics or {})
    preempted = summary.get("failure/cause") == FailureCause.PREEMPTED
    created = _unix_seconds(run.created_at)
    heartbeat = _unix_seconds(getattr(run, "heartbeat_at", None))
    return TrialRecord(
        run_id=run.id,
        name=run.name,
        state=run.state,
        config=trial_config(run.config),
        summary=summary,
        seconds=seconds_of(summary, created, heartbeat),
        created=created,
        heartbeat=heartbeat,
        is_prior_run=getattr(run, "sweep_name", None) not in {None, ref.id},
        # A paused trial and a requeued one are both in state preempted; only the latter has a cause.
        paused=pauses and run.state == "preempted" and not preempted,
        device=f"{run.config[OWNER]} {run.config[DEVICE]}" if {OWNER, DEVICE} <= run.config.keys() else "",
        busy=busy_spans(summary),
    )


def _unix_seconds(text: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
