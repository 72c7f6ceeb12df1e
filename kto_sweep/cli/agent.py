"""kto-sweep agent: train the trials of a sweep on this box."""

import os
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import local_option, say, sweep_argument
from kto_sweep.errors import UsageError

if TYPE_CHECKING:
    from kto_sweep.agent.wandb_run import ServiceGoneError

MOST_TRIALS = 64
RESTART_SECONDS = 5.0
"""An agent that lost wandb's service process sooner than this does not start again by itself."""


class TrialsPerGpu(click.ParamType[int | None]):
    """auto (None), or a number."""

    name = "auto|N"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """None for auto."""
        if value == "auto":
            return None
        if not value.isdigit() or not 1 <= int(value) <= MOST_TRIALS:
            self.fail(f"{value!r} is neither auto nor a number from 1 to {MOST_TRIALS}", param, ctx)
        return int(value)


@click.command()
@sweep_argument
@click.option("--count", type=click.IntRange(min=1), help="Start at most this many trials.")
@click.option("--budget", metavar="TIME", help="Take this many GPU-hours at most: 12h, 90m, 2d.")
@click.option("--until", metavar="TIME", help="Be done by 07:00, or by an ISO date and time.")
@click.option("--gpus", help="Use these GPUs: 0,2. Default: all.")
@click.option(
    "--trials-per-gpu",
    type=TrialsPerGpu(),
    default="auto",
    show_default=True,
    help="Trials trained together: a number, or as many as fit and make all together faster.",
)
@click.option(
    "--gpus-per-trial",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs that train one trial, by data parallelism, with TRL's trainer.",
)
@click.option("--cpu", is_flag=True, help="Use no GPU.")
@click.option("--share-gpus", is_flag=True, help="Use GPUs that another agent of yours uses.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="After a first Ctrl-C or SIGTERM, end within this time.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=1),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for a server that is gone.",
)
@click.option(
    "--alert",
    "alerts",
    multiple=True,
    metavar="RULE",
    help='Send a W&B alert for each run in which this happens: "kl_raw > 10". Repeatable.',
)
@local_option
def agent(
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
) -> int:
    """Train the trials of SWEEP on this box until the sweep ends.

    With --budget or --until no trial begins that cannot end in time, by how long such trials took here or
    else by the plan. Those that still run when the time is over are put back with their checkpoints. Two
    GPUs spend --budget 12h in six hours.

    SWEEP is an id, ENTITY/PROJECT/ID or the address of its page; without it, the sweep used last here.

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
            f"--gpus-per-trial {gpus_per_trial} and --trials-per-gpu {trials_per_gpu} exclude each other",
            hint="leave out --trials-per-gpu: a trial on several GPUs has them to itself",
        )
    from kto_sweep.agent.run_agent import run_agent
    from kto_sweep.agent.time_budget import read_moment, read_span
    from kto_sweep.agent.wandb_run import ServiceGoneError
    from kto_sweep.alerts import parse_rule
    from kto_sweep.home import Home

    began = time.monotonic()
    try:
        return run_agent(
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
            gpu_seconds=read_span(budget) if budget is not None else None,
            until=read_moment(until, datetime.now().astimezone()).timestamp() if until is not None else None,
        )
    except ServiceGoneError as error:
        if time.monotonic() - began < RESTART_SECONDS or error.count == 0:
            raise  # it would end again
        say(f"{error.message}: starting again")
        environ = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        words = _words_again(sys.argv[1:], error, named=sweep is not None)
        os.execve(sys.executable, [sys.executable, "-m", "kto_sweep", *words], environ)


def _words_again(words: list[str], error: "ServiceGoneError", *, named: bool) -> list[str]:
    """The words of an agent that goes on where this one ended.

    It is of the same sweep: by now another may be the one that was used last here.
    """
    rest = [] if error.count is None else ["--count", str(error.count)]  # the last of an option holds
    return [*words, *rest, *error.time_left, *([] if named else [error.sweep])]
