"""kto-sweep stop, pause, resume, cancel: move a sweep to another state."""

from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say, sweep_argument

if TYPE_CHECKING:
    from kto_sweep.wandb_client.private_api import SweepState


def _move(sweep: str | None, state: "SweepState", *, local: bool, as_json: bool) -> None:
    from kto_sweep.home import Home
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.private_api import set_sweep_state
    from kto_sweep.wandb_client.reader import read_sweep

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    api = connect(target)
    before = read_sweep(api, target, ref)
    set_sweep_state(api, ref, state)
    if as_json:
        print_json({"id": ref.id, "path": str(ref), "was": before.state, "state": state})
    else:
        say(f"Sweep {ref}: {before.state.lower()} -> {state.lower()}")
        say(f"Next: kto-sweep {'agent' if state == 'RUNNING' else 'status'} {ref.id}")


@click.command()
@sweep_argument
@local_option
@json_option
def stop(sweep: str | None, local: bool, as_json: bool) -> None:
    """Start no more trials of SWEEP; the running ones finish.

    \b
    kto-sweep stop
    kto-sweep stop my-team/kto/ab12cd34
    """
    _move(sweep, "FINISHED", local=local, as_json=as_json)


@click.command()
@sweep_argument
@local_option
@json_option
def pause(sweep: str | None, local: bool, as_json: bool) -> None:
    """Start no more trials of SWEEP until it is resumed; the running ones finish.

    \b
    kto-sweep pause
    kto-sweep pause ab12cd34
    """
    _move(sweep, "PAUSED", local=local, as_json=as_json)


@click.command()
@sweep_argument
@click.option("--failed", is_flag=True, help="Try all failed trials again, whatever their cause.")
@click.option("--stopped", is_flag=True, help="Try trials again that were stopped before their end.")
@local_option
@json_option
def resume(sweep: str | None, failed: bool, stopped: bool, local: bool, as_json: bool) -> None:
    """Go on with a paused or finished SWEEP: run what is missing, try again what was cut off.

    Trials that were cut off by a crash, a full disk, a sick GPU or the network are tried again, in their old
    runs and from their checkpoints. What is done is never run again. W&B itself takes no run of a sweep back;
    there, `kto-sweep create FILE --reuse SWEEP` makes a sweep of what is left.

    \b
    kto-sweep resume
    kto-sweep resume ab12cd34 --failed
    """
    from kto_sweep.home import Home
    from kto_sweep.sweep.resume import reopen
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect

    home = Home.from_environment()
    target, ref = find_sweep(home, sweep, local=local)
    done = reopen(home, connect(target), target, ref, failed=failed, stopped=stopped)
    if as_json:
        print_json(
            {"id": ref.id, "path": str(ref), "was": done.was, "state": done.state, "again": done.again}
            | {"refused": done.refused, "missing": done.missing}
        )
        return
    say(f"Sweep {ref}: {done.summary()}")
    for line in done.advice:
        say(line)
    say(f"Next: kto-sweep {'agent' if done.state == 'RUNNING' else 'compare'} {ref.id}")


@click.command()
@sweep_argument
@local_option
@json_option
def cancel(sweep: str | None, local: bool, as_json: bool) -> None:
    """End SWEEP and its running trials.

    \b
    kto-sweep cancel
    kto-sweep cancel ab12cd34
    """
    _move(sweep, "CANCELED", local=local, as_json=as_json)
