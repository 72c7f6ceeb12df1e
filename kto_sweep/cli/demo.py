"""kto-sweep demo: a small sweep from start to end."""

from pathlib import Path

import click

from kto_sweep.cli.output import say


@click.command()
def demo() -> int:
    """Run a small, real KTO sweep on this box and show which trial won.

    It uses the embedded server, a tiny model made here, and the CPU: no account, no GPU, no download.

    \b
    kto-sweep demo
    """
    from kto_sweep.agent.session import work_on
    from kto_sweep.cli.compare import print_table
    from kto_sweep.compare import rank
    from kto_sweep.home import Home
    from kto_sweep.registration import register
    from kto_sweep.remote import connect, read_sweep
    from kto_sweep.target import local_target

    home = Home.from_environment()
    say("$ kto-sweep create sweeps/demo.yaml --local")
    made = register(home, Path("sweeps/demo.yaml"), project=None, entity=None, local=True, say=say)
    say(made.summary())
    say(f"\n$ kto-sweep agent {made.ref.id} --cpu")
    code = work_on(home, str(made.ref), count=None, gpus=None, cpu=True, local=True)
    if code:
        return code
    target = local_target(home)
    view = read_sweep(connect(target), target, made.ref)
    say(f"\n$ kto-sweep compare {made.ref.id}")
    print_table(view, rank(view.trials, view.metric, view.goal), view.metric, view.goal)
    say(f"All runs: {view.url}")
    say("Now your own data: copy sweeps/lr_grid.yaml, set dataset and model, and kto-sweep create it.")
    return 0
