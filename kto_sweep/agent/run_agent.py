"""One call of `kto-sweep agent`: from the sweep's name to the exit code."""

import os
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from kto_sweep.agent.connectivity import Connectivity
from kto_sweep.agent.delivery import ATTEMPTS, check_delivery, record_unsent
from kto_sweep.agent.devices import Device, find_devices, grouped, lock_devices
from kto_sweep.agent.executor import Executor
from kto_sweep.agent.lease import AgentLease
from kto_sweep.agent.model_upload import read_log_model
from kto_sweep.agent.preflight import require_command, require_sources
from kto_sweep.agent.progress import EndReport, ProgressDisplay
from kto_sweep.agent.recovery import find_trials_left, restore_damaged
from kto_sweep.agent.state import AgentOutcome, AgentState, AgentStats, Settings
from kto_sweep.agent.supervisor import supervise
from kto_sweep.agent.time_budget import Allowance, Forecast, plan_by, with_earlier_trials
from kto_sweep.agent.trial_source import SweepSource
from kto_sweep.agent.wandb_run import RunOptions, remove_checkpoint
from kto_sweep.agent.workers import TRAINER, WorkerProcess, log_path
from kto_sweep.alerts import AlertRule
from kto_sweep.disk import require_space
from kto_sweep.errors import WORK_LEFT, KtoSweepError
from kto_sweep.fingerprints import InputDrift
from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server
from kto_sweep.plan.gpus import find_gpu
from kto_sweep.plan.planner import planner_for
from kto_sweep.provenance import Provenance
from kto_sweep.run_record import home_id
from kto_sweep.search.space import searched_names
from kto_sweep.sweep.ref import load_sweep_record, save_sweep_record
from kto_sweep.sweep.server_choice import find_sweep
from kto_sweep.sweep.sweep_state import SweepStatus, read_sweep_status
from kto_sweep.sweep.view import OVER, SweepView
from kto_sweep.sweep_file.command_checks import command_notices
from kto_sweep.terminal import LineConsole
from kto_sweep.text import counted, duration
from kto_sweep.wandb_client.connection import Target, connect
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb

GRACE_SECONDS = 60.0
"""How long trials may take to finish their step and save their work after the first signal."""
PATIENCE_SECONDS = 900.0
"""How long the server may be silent before the agent stops starting trials; closing a run waits as long."""
DOUBT_SECONDS = 60.0
"""Data sent within this time before the server fell silent or rejected the key may be lost."""


class ServiceGoneError(KtoSweepError):
    """wandb's service process (wandb-core) lost this agent's runs: another process must continue."""

    count: int | None = None
    """Trials left to start or finish; None: no limit."""
    time_left: Sequence[str] = ()
    """Command-line options with the remaining time."""
    sweep: str = ""
    """ENTITY/PROJECT/ID of the sweep."""


def run_agent(
    home: Home,
    sweep: str | None,
    *,
    count: int | None,
    gpus: str | None,
    cpu: bool,
    local: bool,
    trials_per_device: int | None = None,
    grace: float = GRACE_SECONDS,
    patience: float = PATIENCE_SECONDS,
    share_gpus: bool = False,
    gpus_per_trial: int = 1,
    alerts: Sequence[AlertRule] = (),
    gpu_seconds: float | None = None,
    until: float | None = None,
    worker: Sequence[str] = TRAINER,
    report: EndReport | None = None,
) -> int:
    """The exit code, a key of EXIT_CODES.

    Uses at most `gpu_seconds` of all devices together, and ends by `until` (Unix seconds). `worker`: the
    command of its worker processes. `report` gets what it did.
    Raises KtoSweepError for anything that prevents training on this box, ServiceGoneError when another
    process must continue.
    """
    report = report or EndReport()
    console = LineConsole(file=report.stream, highlight=False)
    log_model = read_log_model()
    gpus_of_box = find_devices(os.environ, gpus=gpus, cpu=cpu)
    allowances = [Allowance.until(until, time.time)] if until is not None else []
    if gpu_seconds is not None:
        allowances.append(Allowance.of_gpus(len(gpus_of_box), gpu_seconds, time.monotonic))
    devices = gpus_of_box if gpus_per_trial == 1 else grouped(gpus_of_box, gpus_per_trial)
    require_space(home.root)
    with lock_devices([] if share_gpus else gpus_of_box, home):
        api, target, view = _open_sweep(console, home, sweep, local=local)
        restore_damaged(console, target, home, view)
        orphans = find_trials_left(console, api, target, home, view.ref)
        console.print(f"Starting a worker on {', '.join(device.name for device in devices)}")
        forecast = _forecast(console, home, gpus_of_box, allowances, view) if allowances else None
        state = AgentState.of(
            {device: str(log_path(home, device)) for device in devices},
            trials_per_device or 1,
            Settings(
                count, grace, patience, adjusts_slots=trials_per_device is None, pauses=view.pauses_trials
            ),
            requeued=tuple(orphans),
            forecast=forecast,
        )
        varied = searched_names(view.space)
        lease = AgentLease(home)
        connectivity = Connectivity(
            target.base_url, (lambda: ensure_server(home).url) if target.local else None
        )
        with ProgressDisplay(console, varied, view.metric, view.expected) as progress:
            executor = Executor(
                SweepSource(api, view.ref, home, view.command), home, progress, lease,
                RunOptions(
                    view.metric, view.goal, target.local, patience, alerts, Provenance.of_process(), log_model
                ),
                connectivity=connectivity, allowances=allowances,
                drift=InputDrift(view.trained(), progress.say),
                start_worker=partial(WorkerProcess, command=worker),
            )  # fmt: skip
            state = supervise(state, executor)
        stats = state.stats
        report.fields |= _as_fields(view, stats)
        if state.outcome is AgentOutcome.RESTART:
            raise _service_gone(state, view, allowances)
        if state.outcome is AgentOutcome.KILLED:
            next_line = (
                f"Next: kto-sweep agent {view.ref.argument}   (continues from the trials' last checkpoints)"
            )
            console.print(next_line, soft_wrap=True)
            report.exit_at_once(128 + stats.interrupted if stats.interrupted else WORK_LEFT)
        attempts = 1 if stats.interrupted else ATTEMPTS
        gone = stats.server_lost or bool(stats.unsent)
        last = None
        if not gone:  # `connectivity` still runs, so it restarts an embedded server that exits meanwhile
            last = check_delivery(home, lease.token, lambda: read_sweep(api, target, view.ref), attempts)
        connectivity.end()
        lease.end()
        if gone:
            _end_without_server(console, report, home, target, stats, connectivity)
    if last is None:
        _end_unknown(console, report, target, stats, view)
    after, unsent = last
    status = read_sweep_status(after)
    report.fields |= {"state": status.state, "unsent": unsent}
    return _end(console, home, target, state, status, unsent)


def _open_sweep(
    console: Console, home: Home, sweep: str | None, *, local: bool
) -> tuple["wandb.Api", Target, SweepView]:
    """The named sweep and its server. Raises KtoSweepError if none of its trials could start."""
    target, ref = find_sweep(home, sweep, local=local)
    api = connect(target)
    console.print(f"Talking to {target}", soft_wrap=True)
    view = read_sweep(api, target, ref)
    save_sweep_record(home, ref, local=target.local, base_url=target.base_url)
    shown_state = read_sweep_status(view).state
    link = target.page_link(view.url, console.file)
    console.print(f"Sweep {ref} ({view.method}, {shown_state}): {link}", soft_wrap=True)
    record = load_sweep_record(home, ref.id)
    require_command(view.command)
    for notice in command_notices(view.command):
        console.print(f"Warning: {notice}", markup=False, soft_wrap=True)
    require_sources(view.space, record.folder if record else "")
    if view.state == "PAUSED":
        console.print(f"The sweep is paused. To start its trials: kto-sweep resume {ref.argument}")
    return api, target, view


def _forecast(
    console: Console, home: Home, devices: Sequence[Device], allowances: Sequence[Allowance], view: SweepView
) -> Forecast:
    """A forecast of trial times on this box; prints the agent's time limit."""
    rest = min(allowance.remaining for allowance in allowances)
    end = datetime.fromtimestamp(time.time() + rest)
    console.print(f"Time limit: {duration(rest)}, until {end:%Y-%m-%d %H:%M:%S}")
    gpu = find_gpu() if devices[0].visible else None
    forecast = Forecast(plan_by(planner_for(gpu, home, this_box=True, exact=False)))
    return with_earlier_trials(forecast, home, view)


def _service_gone(state: AgentState, view: SweepView, allowances: Sequence[Allowance]) -> ServiceGoneError:
    """The error with everything that another process needs to continue."""
    assert isinstance(state.error, KtoSweepError)
    error = ServiceGoneError(state.error.message, hint=state.error.hint)
    error.count = state.trials_left
    error.sweep = str(view.ref)
    error.time_left = [word for allowance in allowances for word in allowance.option]
    return error


def _end_without_server(
    console: Console,
    report: EndReport,
    home: Home,
    target: Target,
    stats: AgentStats,
    connectivity: Connectivity,
) -> NoReturn:
    """End while the server lacks some of the runs, which can be sent later."""
    since = time.monotonic() - connectivity.silence - DOUBT_SECONDS
    unsent = [*stats.unsent, *(run_id for at, run_id in stats.sent if at > since)]
    record_unsent(home, unsent)
    report.fields["unsent"] = unsent
    rejected = connectivity.key_rejected
    problem = f"{target} rejects the key." if rejected else f"Could not reach {target}."
    console.print(problem, soft_wrap=True)
    _print_unsent(console, home, unsent)
    first = f"Next: {target.key_hint}, then" if rejected else "When the server is back:"
    console.print(f"{first} kto-sweep sync, then kto-sweep agent", soft_wrap=True)
    report.exit_at_once(1)


def _end_unknown(
    console: Console, report: EndReport, target: Target, stats: AgentStats, view: SweepView
) -> NoReturn:
    """End without the sweep's current status, because the server is unreachable; `view` is the last one."""
    text = f"{_counts(stats, view)}. Could not reach {target}; the sweep's status is unknown."
    console.print(text, soft_wrap=True)
    console.print(f"When the server is back: kto-sweep status {view.ref.argument}")
    report.exit_at_once(128 + stats.interrupted if stats.interrupted else WORK_LEFT)


def _end(
    console: Console,
    home: Home,
    target: Target,
    state: AgentState,
    after: SweepStatus,
    unsent: Sequence[str],
) -> int:
    """Print the result; returns the exit code."""
    stats = state.stats
    _remove_paused_checkpoints(home, after.view)
    _print_end(console, stats, after)
    if not unsent:
        _print_next(console, home, after)
        return _exit_code(state, after)
    console.print(f"{counted(len(unsent), 'run')} did not completely reach {target}:")
    _print_unsent(console, home, unsent)
    console.print(f"Next: kto-sweep sync, then kto-sweep agent {after.view.ref.argument}")
    return 128 + stats.interrupted if stats.interrupted else 1


def _exit_code(state: AgentState, after: SweepStatus) -> int:
    """The exit code of an agent, given the sweep's status after it."""
    stats, count = state.stats, state.settings.count
    if stats.interrupted:
        return 128 + stats.interrupted
    failed = stats.failed and not after.view.count("finished")
    if stats.too_many_failures or failed:
        return 1
    has_all = count is not None and stats.started >= count
    return WORK_LEFT if after.waits_for_agent and not has_all else 0


def _remove_paused_checkpoints(home: Home, view: SweepView) -> None:
    """Remove the checkpoints of trials that successive halving will not resume."""
    if view.pauses_trials and view.state in OVER:
        for trial in view.trials:
            if trial.state == "killed":
                remove_checkpoint(home.runs / trial.run_id)


def _print_unsent(console: Console, home: Home, runs: Sequence[str]) -> None:
    for run_id in runs:
        console.print(f"  run {run_id} was not sent; its data is in {home.runs / run_id}", soft_wrap=True)


def _as_fields(view: SweepView, stats: AgentStats) -> dict[str, object]:
    """What the agent did, for --json; the sweep's state and unsent runs are known later."""
    return {
        "sweep": str(view.ref),
        "url": view.url,
        "state": None,
        "started": stats.started,
        "finished": stats.finished,
        "stopped": stats.stopped,
        "failed": stats.failed,
        "interrupted": bool(stats.interrupted),
        "unsent": list(stats.unsent),
    }


def _counts(stats: AgentStats, view: SweepView) -> str:
    counts = [f"{stats.finished} finished"]
    how = "canceled" if view.state == "CANCELED" else "stopped early"
    stopped = counted(stats.stopped, "pause") if view.pauses_trials else f"{stats.stopped} {how}"
    counts += [stopped] if stats.stopped else []
    counts += [f"{stats.failed} failed"] if stats.failed else []
    return f"Trials of this agent: {', '.join(counts)}"


def _print_end(console: Console, stats: AgentStats, after: SweepStatus) -> None:
    view = after.view
    of = f" of {view.expected}" if view.expected is not None else ""
    console.print(f"{_counts(stats, view)}. Sweep: {len(after.grid.done)}{of} done.")
    if after.end is not None:
        nothing = "" if stats.started else "Nothing is left to run. "
        console.print(f"{nothing}The sweep is {after.state}: {after.end.text}", soft_wrap=True)


def _print_next(console: Console, home: Home, after: SweepStatus) -> None:
    if after.waits_for_agent:
        console.print(f"Next: kto-sweep agent {after.view.ref.argument}   (continues where this one ended)")
    else:
        console.print(f"Next: {after.next_command(home_id(home))}")
