"""kto-sweep create: from a sweep file to a registered sweep."""

from pathlib import Path

import click

from kto_sweep.cli.output import json_option, local_option, print_json, say


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--project", help="W&B project; the file's own, or kto-sweep.")
@click.option("--entity", help="W&B user or team; the file's own, or that of the key.")
@click.option("--reuse", metavar="SWEEP", help="Take over the finished trials of SWEEP that are the same.")
@click.option("--force", is_flag=True, help="Register it although trials cannot run, by what is known.")
@local_option
@json_option
def create(
    file: Path,
    project: str | None,
    entity: str | None,
    reuse: str | None,
    force: bool,
    local: bool,
    as_json: bool,
) -> None:
    """Register a sweep from a YAML file.

    The file and its data are checked first, as by validate; all problems are shown at once, with their lines.
    So is whether each cell fits on this box's GPU, if it has one, as by plan.

    With --reuse, cells of the grid that an earlier sweep of the project has finished are not trained again. A
    trial is the same when its whole configuration is: parameters searched and fixed, data, model.

    \b
    kto-sweep create sweeps/lr_grid.yaml
    kto-sweep create sweeps/bayes.yaml --project my-kto
    kto-sweep create sweeps/lr_grid.yaml --reuse ab12cd34
    kto-sweep create sweeps/demo.yaml --local --json
    """
    from kto_sweep.home import Home
    from kto_sweep.sweep.create import register

    registered = register(
        Home.from_environment(),
        file,
        project=project,
        entity=entity,
        local=local,
        reuse=reuse,
        force=force,
        say=lambda line: say(line, as_json=as_json),
    )
    if as_json:
        print_json(
            {
                "id": registered.ref.id,
                "path": str(registered.ref),
                "url": registered.url,
                "expected_trials": registered.expected_trials,
                "reused": registered.reused,
            }
        )
        return
    say(registered.summary())
    if registered.login_url:
        say(f"  to pause or stop it there, open this once, within the hour: {registered.login_url}")
    say("Next: kto-sweep agent")
