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
    from kto_sweep.agent.run_agent import run_agent
    from kto_sweep.cli.compare import show
    from kto_sweep.compare.comparison import compare
    from kto_sweep.home import Home
    from kto_sweep.sweep.create import register
    from kto_sweep.sweep.server_choice import local_target
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.reader import read_sweep

    home = Home.from_environment()
    say("$ kto-sweep create sweeps/demo.yaml --local")
    made = register(home, Path("sweeps/demo.yaml"), project=None, entity=None, local=True, say=say)
    say(made.summary())
    say(f"\n$ kto-sweep agent {made.ref.id} --cpu")
    code = run_agent(home, str(made.ref), count=None, gpus=None, cpu=True, local=True)
    if code:
        return code
    target = local_target(home)
    api = connect(target)
    found = compare(read_sweep(api, target, made.ref))
    say(f"\n$ kto-sweep compare {made.ref.id}")
    show(api, found)
    say(f"All runs: {found.view.url}")
    say("Now your own data: kto-sweep generate grid my.yaml --data rows.jsonl --model-size 1.5b")
    return 0
