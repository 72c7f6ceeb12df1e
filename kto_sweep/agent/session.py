"""One call of `kto-sweep agent`: from the sweep's name to the exit code."""

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, NoReturn, cast

from rich.console import Console

from kto_sweep.agent.device_locks import held
from kto_sweep.agent.devices import Device, find_devices, grouped
from kto_sweep.agent.display import Display
from kto_sweep.agent.hearing import LOOKS, last_look, note_unsent
from kto_sweep.agent.lifeline import Lifeline
from kto_sweep.agent.output import SturdyOutput
from kto_sweep.agent.presence import Presence
from kto_sweep.agent.runs import forget_checkpoint
from kto_sweep.agent.sources import require_sources
from kto_sweep.agent.supervisor import Supervisor
from kto_sweep.agent.tally import Tally
from kto_sweep.agent.timekeeper import Timekeeper, by
from kto_sweep.agent.work_left import find_work_left, restore_damaged
from kto_sweep.alerts import AlertRule
from kto_sweep.budget import Allowance, Forecast
from kto_sweep.disk import require_space
from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server
from kto_sweep.plan.gpus import find_gpu
from kto_sweep.plan.preflight import planner
from kto_sweep.sweep.ref import load_sweep_record, save_sweep_record
from kto_sweep.sweep.server_choice import find_sweep
from kto_sweep.sweep.view import SweepView
from kto_sweep.text import counted, duration
from kto_sweep.wandb_client.connection import Target, connect
from kto_sweep.wandb_client.reader import read_sweep

if TYPE_CHECKING:
    import wandb

GRACE_SECONDS = 60.0
"""How long trials may take to end their step and be put away after a first signal."""
PATIENCE_SECONDS = 900.0
"""How long a server may be silent before no more trials are started, and a run's end may wait for it."""

DOUBT_SECONDS = 60.0
"""Before a server fell silent, or refused the key: it may have dropped what was sent to it then."""


def work_on(
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
) -> int:
    """The exit code: 0 when the sweep has a trial that succeeded, 128 + the signal when interrupted, else 1.

    It takes `gpu_seconds` of all devices together at most, and has ended by `until` (Unix seconds).
    Raises KtoSweepError for anything that keeps the box from working at all.
    """
    console = Console(file=cast(IO[str], SturdyOutput(sys.stdout)), highlight=False)
    devices = find_devices(os.environ, gpus=gpus, cpu=cpu)
    allowances = [Allowance.until(until, time.time)] if until is not None else []
    if gpu_seconds is not None:
        allowances.append(Allowance.of_gpus(len(devices), gpu_seconds, time.monotonic))
    stations = devices if gpus_per_trial == 1 else grouped(devices, gpus_per_trial)
    require_space(home.root)
    with held([] if share_gpus else devices):
        api, target, view = _open_sweep(console, home, sweep, local=local)
        ref = view.ref
        restore_damaged(console, target, home, view)
        orphans = find_work_left(console, api, target, home, ref)
        console.print(f"Starting a worker on {', '.join(device.name for device in stations)}")
        timekeeper = _timekeeper(console, home, devices, allowances, view) if allowances else None
        varied = tuple(".".join(parameter.path) for parameter in view.space.searched)
        presence = Presence(home)
        lifeline = Lifeline(target.base_url, (lambda: ensure_server(home).url) if target.local else None)
        lifeline.start()
        with Display(console, varied, view.metric, view.expected) as display:
            supervisor = Supervisor(
                api, ref, home, stations, display, presence, lifeline,
                metric=view.metric, goal=view.goal, local=target.local,
                trials_per_device=trials_per_device, count=count,
                grace=grace, patience=patience, orphans=orphans, alerts=alerts, timekeeper=timekeeper,
                pauses=view.pauses_trials, earlier=view.trained(),
            )  # fmt: skip
            try:
                tally = supervisor.run()
            except KeyboardInterrupt:
                tally = supervisor.tally
                console.print("Next: kto-sweep agent   (goes on from the trials' last checkpoints)")
                leave_at_once(128 + tally.interrupted if tally.interrupted else 1)
        gone = tally.cut_off or bool(tally.unsent)
        looks = 0 if gone else 1 if tally.interrupted else LOOKS
        last = last_look(home, presence.token, lambda: read_sweep(api, target, ref), looks)
        lifeline.end()  # not before: it revives a server that ends now
        presence.end()
        if gone:
            since = time.monotonic() - lifeline.silence - DOUBT_SECONDS
            tally.unsent += [run_id for at, run_id in tally.sent if at > since]
            note_unsent(home, tally.unsent)
            console.print(f"{target} refuses the key." if lifeline.refused else f"{target} does not answer.")
            _say_unsent(console, home, tally.unsent)
            login = f"Next: wandb login --host {target.base_url} --relogin, then"
            first = login if lifeline.refused else "When the server is back:"
            console.print(f"{first} kto-sweep sync, then kto-sweep agent", soft_wrap=True)
            leave_at_once(1)
    if last is None:
        _end_unseen(console, target, tally, view)
    return _end(console, home, target, tally, *last)


def _open_sweep(
    console: Console, home: Home, sweep: str | None, *, local: bool
) -> tuple["wandb.Api", Target, SweepView]:
    """The sweep that is meant, on its server. Raises KtoSweepError when no trial of it could be begun."""
    target, ref = find_sweep(home, sweep, local=local)
    console.print(f"Talking to {target}", soft_wrap=True)
    api = connect(target)
    view = read_sweep(api, target, ref)
    save_sweep_record(home, ref, local=target.local, base_url=target.base_url)
    console.print(f"Sweep {ref} ({view.method}, {view.state.lower()}): {view.url}", soft_wrap=True)
    record = load_sweep_record(home, ref.id)
    require_sources(view.space, record.folder if record else "")
    if view.state == "PAUSED":
        console.print(f"It is paused: its trials begin after   kto-sweep resume {ref.id}")
    return api, target, view


def _end_unseen(console: Console, target: Target, tally: Tally, view: SweepView) -> NoReturn:
    """End without a server that could say how the sweep, last seen as `view`, stands."""
    console.print(f"{_told(tally, view)}. {target} does not answer: how the sweep stands is not known.")
    console.print(f"When the server is back: kto-sweep status {view.ref.id}")
    leave_at_once(_exit_code(tally, tally.finished + view.count("finished")))


def _end(
    console: Console, home: Home, target: Target, tally: Tally, after: SweepView, missed: Sequence[str]
) -> int:
    """Say how it ended; the exit code."""
    _forget_paused(home, after)
    _say_end(console, tally, after)
    if not missed:
        return _exit_code(tally, after.count("finished"))
    console.print(f"{target} has not heard all of {counted(len(missed), 'run')} that ended here.")
    _say_unsent(console, home, missed)
    console.print("Send it: kto-sweep sync, then kto-sweep agent")
    return 128 + tally.interrupted if tally.interrupted else 1


def _exit_code(tally: Tally, finished: int) -> int:
    """For an agent of a sweep with so many finished trials."""
    if tally.interrupted:
        return 128 + tally.interrupted
    as_told = (tally.time_is_up or tally.out_of_time) and not tally.failed
    return 0 if as_told or finished else 1


def _timekeeper(
    console: Console, home: Home, devices: Sequence[Device], allowances: Sequence[Allowance], view: SweepView
) -> Timekeeper:
    """What begins and ends trials within the time that the agent has, which is said."""
    rest = min(allowance.rest for allowance in allowances)
    at = datetime.fromtimestamp(time.time() + rest)
    console.print(f"Its time is over in {duration(rest)}, at {at:%Y-%m-%d %H:%M:%S}")
    gpu = find_gpu() if devices[0].visible else None
    timekeeper = Timekeeper(allowances, Forecast(by(planner(gpu, home, this_box=True, exact=False))), home)
    timekeeper.learn_earlier(view)
    return timekeeper


def _forget_paused(home: Home, view: SweepView) -> None:
    """Of trials that successive halving has paused for good, keep no checkpoint to go on from."""
    if view.pauses_trials and view.state in {"FINISHED", "CANCELED"}:
        for trial in view.trials:
            if trial.state == "killed":
                forget_checkpoint(home.runs / trial.run_id)


def _say_unsent(console: Console, home: Home, runs: Sequence[str]) -> None:
    for run_id in runs:
        console.print(f"  run {run_id} is complete in {home.runs / run_id}, and was not sent", soft_wrap=True)


def leave_at_once(code: int) -> NoReturn:
    """End without the goodbyes of libraries: wandb's would wait for a server that is not there."""
    sys.stdout.flush()
    os._exit(code)


def _told(tally: Tally, view: SweepView) -> str:
    told = [f"{tally.finished} finished"]
    stopped = counted(tally.stopped, "pause") if view.pauses_trials else f"{tally.stopped} stopped early"
    told += [stopped] if tally.stopped else []
    told += [f"{tally.failed} failed"] if tally.failed else []
    return f"Trials of this agent: {', '.join(told)}"


def _say_end(console: Console, tally: Tally, view: SweepView) -> None:
    of = f" of {view.expected}" if view.expected is not None else ""
    console.print(f"{_told(tally, view)}. Sweep: {view.count('finished')}{of} finished.")
    if not tally.started and view.state in {"FINISHED", "CANCELED"}:
        console.print(f"The sweep is {view.state.lower()}: there was nothing left to run.")
    if tally.is_leaving or tally.out_of_time:
        console.print("Next: kto-sweep agent   (goes on where this one ended)")
    elif not tally.started and view.count("finished") < (view.expected or 0):
        console.print(f"Next: kto-sweep status {view.ref.id}   (says what became of the others)")
    else:
        console.print(f"Next: kto-sweep compare {view.ref.id}")
