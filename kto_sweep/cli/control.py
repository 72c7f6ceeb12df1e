"""kto-sweep stop, pause, resume, cancel: change the state of a sweep."""

from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import json_option, local_option, print_json, read_sweep_shown, say, sweep_argument

if TYPE_CHECKING:
    import wandb

    from kto_sweep.sweep.sweep_state import Action, SweepStatus


def _take(name: str, sweep: str | None, *, local: bool, as_json: bool) -> None:
    """Take an action on a sweep. Raises UsageError if it would change nothing."""
    from kto_sweep.home import Home
    from kto_sweep.run_record import home_id
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.sweep.sweep_state import Action, read_sweep_status
    from kto_sweep.wandb_client.connection import connect

    home, action = Home.from_environment(), Action(name)
    target, ref = find_sweep(home, sweep, local=local)
    api = connect(target)
    before = read_sweep_status(read_sweep_shown(api, target, ref))
    _take_action(api, before, action)
    after = read_sweep_status(read_sweep_shown(api, target, ref))
    if as_json:
        print_json(
            {"id": ref.id, "path": str(ref), "was": before.view.state, "state": after.view.state}
            | after.facts(home_id(home))
        )
        return
    say(f"Sweep {ref}: {after.state}{_what_runs_on(after)}")
    say(f"Next: {after.next_command(home_id(home))}")


def _take_action(api: "wandb.Api", status: "SweepStatus", action: "Action") -> None:
    """Take an action on the sweep.

    Raises UsageError if it would change nothing, ServerError if the server rejects it.
    """
    from kto_sweep.errors import ServerError, UsageError
    from kto_sweep.sweep.sweep_state import WIRE_STATES, Action
    from kto_sweep.sweep.trial_state import state_of
    from kto_sweep.sweep.view import OVER
    from kto_sweep.wandb_client.private_api import set_sweep_state, stop_run

    view = status.view
    if refused := status.refusal(action):
        raise UsageError(f"{view.ref} is {status.state}: {refused.reason}", hint=refused.hint)
    try:
        set_sweep_state(api, view.ref, WIRE_STATES[action])
    except ServerError:
        if action is not Action.CANCEL or view.state not in OVER:
            raise
        # A server may keep a finished sweep finished: stop its last trials one by one.
        for trial in view.trials:
            if not trial.is_prior_run and not state_of(view, trial).has_ended:
                stop_run(api, view.ref, trial.run_id)


def _what_runs_on(status: "SweepStatus") -> str:
    from kto_sweep.sweep.sweep_state import ShownState
    from kto_sweep.sweep.trial_state import TrialState, state_of
    from kto_sweep.text import counted

    view = status.view
    running = sum(state_of(view, trial) is TrialState.RUNNING for trial in view.trials)
    if not running:
        return ""
    trials = counted(running, "running trial")
    if status.state is ShownState.CANCELING:
        return f"; {trials} being stopped"
    return f"; {trials} will finish" + (
        f" (to stop them too: kto-sweep cancel {view.ref.argument})"
        if status.state is ShownState.STOPPING
        else ""
    )


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
    _take("stop", sweep, local=local, as_json=as_json)


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
    _take("pause", sweep, local=local, as_json=as_json)


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
    from kto_sweep.run_record import home_id
    from kto_sweep.sweep.resume import resume_sweep
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect

    home = Home.from_environment()
    target, ref = find_sweep(home, sweep, local=local)
    resumed = resume_sweep(home, connect(target), target, ref, failed=failed, stopped=stopped)
    after = resumed.after
    if as_json:
        print_json(
            {"id": ref.id, "path": str(ref), "was": resumed.before.view.state, "state": after.view.state}
            | {"again": resumed.retried, "refused": resumed.refused, "missing": resumed.missing}
            | after.facts(home_id(home))
        )
        return
    say(f"Sweep {ref}: {resumed.summary()}")
    for line in resumed.advice:
        say(line)
    say(f"Next: {after.next_command(home_id(home))}")


@click.command()
@sweep_argument
@local_option
@json_option
def cancel(sweep: str | None, local: bool, as_json: bool) -> None:
    """End SWEEP and stop its running trials, also after `stop`.

    \b
    kto-sweep cancel
    kto-sweep cancel ab12cd34
    """
    _take("cancel", sweep, local=local, as_json=as_json)
