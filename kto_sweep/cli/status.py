"""kto-sweep status: how far a sweep is."""

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say, sweep_argument


@click.command()
@sweep_argument
@local_option
@json_option
def status(sweep: str | None, local: bool, as_json: bool) -> None:
    """Say how far SWEEP is: expected, finished, running, failed and missing trials.

    \b
    kto-sweep status
    kto-sweep status ab12cd34 --json
    """
    from kto_sweep.home import Home
    from kto_sweep.remote import RUNNING, connect, read_sweep
    from kto_sweep.target import find_sweep

    target, ref = find_sweep(Home.from_environment(), sweep, local=local)
    view = read_sweep(connect(target), target, ref)
    finished, running = view.count("finished"), view.count(*RUNNING)
    failed = len(view.trials) - finished - running
    missing = None if view.expected is None else max(0, view.expected - len(view.trials))
    if as_json:
        print_json(
            {
                "id": ref.id,
                "path": str(ref),
                "url": view.url,
                "state": view.state,
                "expected": view.expected,
                "finished": finished,
                "running": running,
                "failed": failed,
                "missing": missing,
            }
        )
        return
    say(f"Talking to {'the ' if target.local else ''}{target}")
    say(f"Sweep {ref}: {view.state.lower()}   {view.url}")
    of = "" if view.expected is None else f" of {view.expected}"
    rest = "" if missing is None else f", {missing} missing"
    say(f"  {finished}{of} finished, {running} running, {failed} failed or stopped{rest}")
    for trial in view.trials:
        if trial.failure:
            say(f"  run {trial.run_id}: {trial.failure}   {trial.summary.get('failure/message', '')}")
    over = view.state in {"FINISHED", "CANCELED"}
    say(f"Next: kto-sweep {'compare' if over else 'agent'} {ref.id}")
