"""Sweeps and runs as plain data, read through wandb.Api from whichever server holds them."""

import logging
import math
import os
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from kto_sweep.alerts import without_rules
from kto_sweep.calls import NO_ANSWER, opener
from kto_sweep.errors import FailureCause, ServerError
from kto_sweep.metrics import DEFAULT_METRIC
from kto_sweep.sameness import Trained
from kto_sweep.search.options import Objective, metric_of, read_options
from kto_sweep.search.space import Space, parse_space
from kto_sweep.spec.sweep_file import expected_trials
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.target import Target

if TYPE_CHECKING:
    import wandb

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120
"""For a server that can be reached. A 429 may ask for a minute of waiting, which wandb's client keeps only as
long as its caller does: one that gives up earlier asks again too early."""

OWNER, DEVICE = "_home", "_device"
"""In a run's config, out of sight: the home (see presence.py) that has opened it last, and on what device."""

RUNNING = frozenset({"running", "pending", "preempting", "preempted"})
"""Run states of a trial that is not over; a preempted one is handed out again."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a sweep, as its run tells it."""

    run_id: str
    name: str
    state: str
    """W&B's run state: pending, running, finished, failed, crashed, killed, preempting, preempted."""
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    seconds: float | None
    """Time from start to the last sign of life."""
    created: float | None = None
    """Unix seconds."""
    place: str = ""
    """The device that an agent of ours trained it on, and of which box: `<home> gpu 0`; else empty."""
    borrowed: bool = False
    """It is of another sweep, and this one counts it as its own."""
    paused: bool = False
    """By successive halving: it waits until it is among the best."""

    @property
    def failure(self) -> str:
        """`failure/cause` of a trial that has failed, or its state when there is no cause; else empty.

        A trial that was run again after a failure may still have the cause in its summary.
        """
        if self.state not in {"failed", "crashed", "killed"}:
            return ""
        return str(self.summary.get("failure/cause") or self.state)

    def value(self, metric: str) -> float | None:
        """The metric's last value; None when there is none or it is not finite."""
        value = self.summary.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True)
class SweepView:
    """A sweep and all its trials."""

    ref: SweepRef
    url: str
    name: str
    state: str
    """PENDING, RUNNING, PAUSED, FINISHED or CANCELED."""
    method: str
    metric: str
    goal: str
    """minimize or maximize"""
    space: Space
    expected: int | None
    """How many trials it takes in all; None when it has no end of its own."""
    trials: tuple[TrialRecord, ...]
    objectives: tuple[Objective, ...] = ()
    """Two or three, the metric first; empty: it has that alone."""
    pauses: bool = False
    """Trials that are stopped may go on, by successive halving."""

    def count(self, *states: str) -> int:
        """How many runs are in one of these states; those of other sweeps fill the cells of a grid alone."""
        return sum(trial.state in states for trial in self.trials if self.is_own(trial))

    def trained(self) -> list[Trained]:
        """What each trial was trained on."""
        return [Trained(trial.run_id, trial.config, trial.summary) for trial in self.trials]

    def is_own(self, trial: TrialRecord) -> bool:
        """Whether the trial is one that this sweep has, or would have had, to train."""
        return not trial.borrowed or self.method == "grid"


def connect(target: Target) -> "wandb.Api":
    """A wandb.Api that is known to get an answer and to have a good key.

    wandb itself would go on trying for minutes, silently.

    Raises ServerError when nobody answers or the key is refused.
    """
    target.enter()
    try:
        opener(target.base_url).open(target.base_url, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # any answer will do
    except NO_ANSWER as error:
        reason = getattr(error, "reason", error)
        raise ServerError(
            f"no answer from {target}: {reason}",
            hint="check the address and the network, or add --local to work without W&B",
        ) from error
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.raiseExceptions = False  # on a full disk wandb's own log would fill the screen with tracebacks
    import wandb
    from wandb.errors import AuthenticationError, CommError

    try:
        # Named outright: what wandb has read of the environment once it does not read again.
        api = wandb.Api(
            overrides={"base_url": target.base_url},
            timeout=ANSWER_SECONDS,
            api_key=os.environ.get("WANDB_API_KEY"),
        )
        user = api.viewer
    except (AuthenticationError, CommError, ValueError) as error:
        raise ServerError(
            f"{target} refuses the key: {error}", hint=f"wandb login --host {target.base_url} --relogin"
        ) from error
    if user is None:
        raise ServerError(f"{target} refuses the key", hint=f"wandb login --host {target.base_url} --relogin")
    return api


def is_deleted(api: "wandb.Api", ref: SweepRef) -> bool:
    """Whether the server says that there is no such sweep; False as well when it says nothing."""
    try:
        api.sweep(str(ref)).load(force=True)  # wandb.Api remembers a sweep that it has read before
    except Exception as error:  # wandb has no one class for what can go wrong
        return is_unknown(error)
    return False


def is_unknown(error: Exception) -> bool:
    """Whether what wandb raised says that something was not found; the rest is trouble with the server."""
    return type(getattr(error, "exc", error)) is ValueError  # those of other kinds say that it was not read


def trouble(error: Exception) -> str:
    """What the server said, as far as wandb tells it."""
    response = getattr(getattr(error, "exc", error), "response", None)
    status = getattr(response, "http_status", 0)
    return f"{error} (HTTP {status})" if status else str(error)


def read_sweep(api: "wandb.Api", target: Target, ref: SweepRef) -> SweepView:
    """The sweep with all its trials, in order of creation.

    Raises ServerError when the server does not know it, or cannot be asked.
    """
    api.flush()  # wandb.Api remembers what it read before: this makes it forget its runs, `force` the sweep
    try:
        sweep = api.sweep(str(ref))
        sweep.load(force=True)
        runs = api.runs(f"{ref.entity}/{ref.project}", filters={"sweep": ref.id}, lazy=False)
        runs = list(runs)
    except Exception as error:  # wandb has no one class for what can go wrong
        if not is_unknown(error):
            raise ServerError(
                f"{target} does not tell of the sweep {ref}: {trouble(error)}",
                hint=f"try again later, or with another key: wandb login --host {target.base_url} --relogin",
            ) from error
        raise ServerError(
            f"{target} does not know the sweep {ref}",
            hint="kto-sweep status   (without a name: the sweep used last on this box)",
        ) from error
    config: dict[str, Any] = sweep.config if isinstance(sweep.config, dict) else yaml.safe_load(sweep.config)
    space, _ = parse_space(without_rules(config.get("parameters") or {}))
    options = read_options(config, [])
    metric = metric_of(config, options.objectives) or {}
    pauses = options.asha is not None
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
        trials=tuple(_trial(run, ref, pauses=pauses) for run in runs),
        objectives=options.objectives,
        pauses=pauses,
    )


def _trial(run: Any, ref: SweepRef, *, pauses: bool) -> TrialRecord:
    summary = dict(run.summary_metrics or {})
    put_back = summary.get("failure/cause") == FailureCause.PREEMPTED
    return TrialRecord(
        run_id=run.id,
        name=run.name,
        state=run.state,
        config={key: value for key, value in run.config.items() if not key.startswith("_")},
        summary=summary,
        seconds=_seconds(run, summary),
        created=_created(run),
        borrowed=getattr(run, "sweep_name", None) not in {None, ref.id},
        paused=pauses and run.state == "preempted" and not put_back,
        place=f"{run.config[OWNER]} {run.config[DEVICE]}" if {OWNER, DEVICE} <= run.config.keys() else "",
    )


def _created(run: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(run.created_at)
    except (AttributeError, TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _seconds(run: Any, summary: Mapping[str, Any]) -> float | None:
    known = summary.get("trial/seconds", summary.get("_runtime"))
    if isinstance(known, int | float):
        return float(known)
    try:
        start, end = (datetime.fromisoformat(text) for text in (run.created_at, run.heartbeat_at))
    except (AttributeError, TypeError, ValueError):
        return None
    return max(0.0, (end - start).total_seconds())  # a clock may have been set back
