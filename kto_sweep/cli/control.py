"""kto-sweep stop, pause, resume, cancel: change the state of a sweep."""

from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say, sweep_argument

if TYPE_CHECKING:
    from kto_sweep.wandb_client.private_api import SweepState


def _set_state(sweep: str | None, state: "SweepState", *, local: bool, as_json: bool) -> None:
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
    """Start no new trials of SWEEP; running trials finish.

    \b
    kto-sweep stop
    kto-sweep stop my-team/kto/ab12cd34
    """
    _set_state(sweep, "FINISHED", local=local, as_json=as_json)


@click.command()
@sweep_argument
@local_option
@json_option
def pause(sweep: str | None, local: bool, as_json: bool) -> None:
    """Start no new trials of SWEEP until it is resumed; running trials finish.

    \b
    kto-sweep pause
    kto-sweep pause ab12cd34
    """
    _set_state(sweep, "PAUSED", local=local, as_json=as_json)


@click.command()
@sweep_argument
@click.option("--failed", is_flag=True, help="Retry all failed trials, whatever the cause.")
@click.option("--stopped", is_flag=True, help="Retry trials that were stopped early.")
@local_option
@json_option
def resume(sweep: str | None, failed: bool, stopped: bool, local: bool, as_json: bool) -> None:
    """Resume a paused or finished SWEEP: run its missing trials and retry interrupted ones.

    Trials that failed because of a crash, a full disk, a faulty GPU or the network continue from their
    checkpoints, in the same runs. Finished trials never run again. W&B cannot retry runs of a sweep; there,
    train the rest in a new sweep: `kto-sweep create FILE --reuse SWEEP`.

    \b
    kto-sweep resume
    kto-sweep resume ab12cd34 --failed
    """
    from kto_sweep.home import Home
    from kto_sweep.sweep.resume import resume_sweep
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect

    home = Home.from_environment()
    target, ref = find_sweep(home, sweep, local=local)
    resumed = resume_sweep(home, connect(target), target, ref, failed=failed, stopped=stopped)
    if as_json:
        print_json(
            {"id": ref.id, "path": str(ref), "was": resumed.previous_state, "state": resumed.state}
            | {"again": resumed.retried, "refused": resumed.refused, "missing": resumed.missing}
        )
        return
    say(f"Sweep {ref}: {resumed.summary()}")
    for line in resumed.advice:
        say(line)
    say(f"Next: kto-sweep {'agent' if resumed.state == 'RUNNING' else 'compare'} {ref.id}")


@click.command()
@sweep_argument
@local_option
@json_option
def cancel(sweep: str | None, local: bool, as_json: bool) -> None:
    """End SWEEP and stop its running trials.

    \b
    kto-sweep cancel
    kto-sweep cancel ab12cd34
    """
    _set_state(sweep, "CANCELED", local=local, as_json=as_json)
