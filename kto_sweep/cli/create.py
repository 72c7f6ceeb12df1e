"""kto-sweep create: register a sweep from a YAML file."""

from pathlib import Path

import click

from kto_sweep.cli.output import json_option, local_option, page_link, print_json, say
from kto_sweep.cli.path_option import UserPath


@click.command()
@click.argument("file", type=UserPath())
@click.option("--project", help="W&B project. Default: the file's, or kto-sweep.")
@click.option("--entity", help="W&B user or team. Default: the file's, or the key's.")
@click.option("--reuse", metavar="SWEEP", help="Reuse finished trials of SWEEP with the same configuration.")
@click.option("--force", is_flag=True, help="Register the sweep even if its trials cannot run here.")
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

    First checks the file and its data, like validate, and shows all problems at once with their lines. If
    this box has a GPU, also checks that each cell fits on it, like plan.

    With --reuse, cells of the grid that an earlier sweep of the same project finished are not trained again.
    A trial matches a cell if its whole configuration does: searched and fixed parameters, data, model.

    \b
    kto-sweep create sweeps/lr_grid.yaml
    kto-sweep create sweeps/bayes.yaml --project my-kto
    kto-sweep create sweeps/lr_grid.yaml --reuse ab12cd34
    kto-sweep create sweeps/demo.yaml --local --json
    """
    from kto_sweep.home import Home
    from kto_sweep.sweep.create import create_sweep

    created = create_sweep(
        Home.from_environment(),
        file,
        project=project,
        entity=entity,
        local=local,
        reuse=reuse,
        force=force,
        say=lambda line: say(line, as_json=as_json),
    )
    command = f"kto-sweep {'compare' if created.is_finished else 'agent'} {created.ref.argument}"
    if as_json:
        print_json(
            {
                "id": created.ref.id,
                "path": str(created.ref),
                "url": created.url,
                "expected_trials": created.expected_trials,
                "reused": created.reused,
                "next": command,
            }
        )
        return
    say(created.summary(page_link(created.target, created.url)))
    say(f"Next: {command}")
