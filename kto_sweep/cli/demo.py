"""kto-sweep demo: a small sweep, start to end."""

from functools import partial
from pathlib import Path

import click

from kto_sweep.cli.output import json_option, page_link, say


@click.command()
@json_option
def demo(as_json: bool) -> int:
    """Run a small, real KTO sweep on this box and show which trial won.

    Uses the embedded server, the CPU and a tiny generated model: no account, no GPU, no download.

    \b
    kto-sweep demo
    """
    from kto_sweep.agent.progress import EndReport
    from kto_sweep.agent.run_agent import run_agent
    from kto_sweep.cli.compare import show
    from kto_sweep.compare.comparison import compare
    from kto_sweep.home import Home
    from kto_sweep.sweep.create import create_sweep
    from kto_sweep.sweep.server_choice import local_target
    from kto_sweep.wandb_client.connection import connect
    from kto_sweep.wandb_client.reader import read_sweep

    home, report = Home.from_environment(), EndReport(as_json=as_json)
    to_people = partial(say, as_json=as_json)
    to_people("$ kto-sweep create sweeps/demo.yaml --local")
    created = create_sweep(
        home, Path("sweeps/demo.yaml"), project=None, entity=None, local=True, say=to_people
    )
    to_people(created.summary(page_link(created.target, created.url, as_json=as_json)))
    to_people(f"\n$ kto-sweep agent {created.ref.argument} --cpu")
    ref = str(created.ref)
    code = run_agent(home, ref, count=None, gpus=None, cpu=True, local=True, report=report)
    report.print(code)
    if code or as_json:
        return code
    target = local_target(home)
    api = connect(target)
    comparison = compare(read_sweep(api, target, created.ref))
    say(f"\n$ kto-sweep compare {created.ref.argument}")
    show(api, target, comparison)
    say(f"All runs: {page_link(target, comparison.view.url)}")
    say("Next, your own data: kto-sweep generate grid my.yaml --data rows.jsonl --model-size 1.5b")
    return 0
