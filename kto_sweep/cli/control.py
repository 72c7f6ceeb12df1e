"""kto-sweep stop, pause, resume, cancel: move a sweep to another state."""

from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say, sweep_argument

if TYPE_CHECKING:
    from kto_sweep.agent.link import SweepState


def _move(sweep: str | None, state: "SweepState", *, local: bool, as_json: bool) -> None:
    from kto_sweep.agent.link import set_sweep_state
    from kto_sweep.home import Home
    from kto_sweep.remote import connect, read_sweep
    from kto_sweep.target import find_sweep

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
@local_option
@json_option
def resume(sweep: str | None, local: bool, as_json: bool) -> None:
    """Go on with a paused or stopped SWEEP.

    \b
    kto-sweep resume
    kto-sweep resume ab12cd34
    """
    _move(sweep, "RUNNING", local=local, as_json=as_json)


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
