"""kto-sweep agent: train the trials of a sweep on this box."""

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import json_option, local_option, say, sweep_argument
from kto_sweep.errors import UsageError

if TYPE_CHECKING:
    from kto_sweep.agent.run_agent import ServiceGoneError

MAX_TRIALS = 64
MIN_UPTIME = 5.0
"""Seconds; an agent that loses wandb-core sooner than this does not restart itself."""


class TrialsPerGpu(click.ParamType[int | None]):
    """`auto` or a number."""

    name = "auto|N"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """None for auto."""
        if value == "auto":
            return None
        if not value.isdigit() or not 1 <= int(value) <= MAX_TRIALS:
            self.fail(f"{value!r} is neither auto nor a number from 1 to {MAX_TRIALS}", param, ctx)
        return int(value)


@click.command()
@sweep_argument
@click.option("--count", type=click.IntRange(min=1), help="Start at most this many trials.")
@click.option("--budget", metavar="TIME", help="Use at most this many GPU-hours: 12h, 90m, 2d.")
@click.option("--until", metavar="TIME", help="End by this time: 07:00, or an ISO date and time.")
@click.option("--gpus", help="Use these GPUs: 0,2. Default: all.")
@click.option(
    "--trials-per-gpu",
    type=TrialsPerGpu(),
    default="auto",
    show_default=True,
    help="Trials trained together on a GPU; auto adds trials while they fit and increase throughput.",
)
@click.option(
    "--gpus-per-trial",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs that train one trial with data parallelism (TRL's trainer).",
)
@click.option("--cpu", is_flag=True, help="Train on the CPU.")
@click.option("--share-gpus", is_flag=True, help="Also use GPUs that another of your agents is using.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Exit within this time after the first Ctrl-C or SIGTERM.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=1),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop starting trials once the server has been unreachable for this long.",
)
@click.option(
    "--alert",
    "alerts",
    multiple=True,
    metavar="RULE",
    help='Raise an alert for each run that meets this rule: "kl_raw > 10". Repeatable.',
)
@local_option
@json_option
@click.pass_obj
def agent(
    worker: Sequence[str] | None,
    sweep: str | None,
    count: int | None,
    budget: str | None,
    until: str | None,
    gpus: str | None,
    trials_per_gpu: int | None,
    gpus_per_trial: int,
    cpu: bool,
    share_gpus: bool,
    grace: float,
    patience: float,
    alerts: tuple[str, ...],
    local: bool,
    as_json: bool,
) -> int:
    """Train the trials of SWEEP on this box until the sweep ends.

    With --budget or --until, starts only trials that are expected to finish in time, based on similar trials
    on this box or else on the plan. Trials still running at the end are requeued with their checkpoints. Two
    GPUs use up --budget 12h in six hours. Exit code 75: trials are left.

    SWEEP is an id, ENTITY/PROJECT/ID or the URL of its page. Default: the last sweep used on this box.

    \b
    kto-sweep agent
    kto-sweep agent my-team/kto/ab12cd34 --gpus 0,1
    kto-sweep agent --count 1
    kto-sweep agent --budget 12h
    kto-sweep agent --until 07:00
    kto-sweep agent --gpus 0,1,2,3 --gpus-per-trial 2
    kto-sweep agent --alert "kl_raw > 10" --alert "tokens_per_second < 100"
    """
    if gpus_per_trial > 1 and (trials_per_gpu or 1) > 1:
        raise UsageError(
            f"--gpus-per-trial {gpus_per_trial} and --trials-per-gpu {trials_per_gpu}: use only one",
            hint="drop --trials-per-gpu: a trial on several GPUs does not share them",
        )
    from kto_sweep.agent.progress import EndReport
    from kto_sweep.agent.run_agent import ServiceGoneError, run_agent
    from kto_sweep.agent.time_budget import parse_duration, parse_time
    from kto_sweep.agent.workers import TRAINER
    from kto_sweep.alerts import parse_rule
    from kto_sweep.home import Home

    started, report = time.monotonic(), EndReport(as_json=as_json)
    try:
        code = run_agent(
            Home.from_environment(),
            sweep,
            count=count,
            gpus=gpus,
            cpu=cpu,
            local=local,
            trials_per_device=trials_per_gpu,
            grace=grace,
            patience=patience,
            share_gpus=share_gpus,
            gpus_per_trial=gpus_per_trial,
            alerts=[parse_rule(text) for text in alerts],
            gpu_seconds=parse_duration(budget) if budget is not None else None,
            until=parse_time(until, datetime.now().astimezone()).timestamp() if until is not None else None,
            worker=worker or TRAINER,
            report=report,
        )
    except ServiceGoneError as error:
        if time.monotonic() - started < MIN_UPTIME or error.count == 0:
            raise  # a restart would fail in the same way, or have nothing left to do
        say(f"{error.message}; restarting", as_json=as_json)
        environ = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        command = _restart_command(sys.orig_argv, error, named=sweep is not None)
        os.execve(sys.executable, command, environ)
    report.print(code)
    return code


def _restart_command(command: list[str], error: "ServiceGoneError", *, named: bool) -> list[str]:
    """The command of the agent that replaces this one, with the remaining count and time.

    It names the sweep, because another sweep may have been used in the meantime.
    """
    remaining = [] if error.count is None else ["--count", str(error.count)]  # a repeated option overrides
    return [sys.executable, *command[1:], *remaining, *error.time_left, *([] if named else [error.sweep])]
