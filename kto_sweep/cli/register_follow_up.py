"""The common part of replicate and widen: options, the best configurations, the file, its registration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import (
    json_option,
    local_option,
    page_link,
    print_json,
    read_sweep_shown,
    say,
)
from kto_sweep.cli.path_option import UserPath
from kto_sweep.errors import UsageError
from kto_sweep.home import users_umask

if TYPE_CHECKING:
    from kto_sweep.compare.ranking import Configuration
    from kto_sweep.sweep.follow_up import FollowUp
    from kto_sweep.sweep.view import SweepView


def follow_up_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with --file, --dry-run, --local and --json."""
    for option in (
        json_option,
        local_option,
        click.option("--dry-run", is_flag=True, help="Print the file; write and register nothing."),
        click.option(
            "--file",
            type=UserPath(dir_okay=False),
            metavar="FILE",
            help="The sweep file to write. Default: named after SWEEP.",
        ),
    ):
        command = option(command)
    return command


def follow_up(
    sweep: str | None,
    make: Callable[["SweepView", Sequence["Configuration"]], "FollowUp"],
    *,
    file: Path | None,
    dry_run: bool,
    local: bool,
    as_json: bool,
) -> None:
    """Write the sweep file that `make` returns for a sweep and its configurations, and register it.

    `make` gets the configurations with a finished trial, best first. Never overwrites a file.
    """
    from kto_sweep.compare.comparison import compare
    from kto_sweep.home import Home
    from kto_sweep.sweep.create import create_sweep
    from kto_sweep.sweep.follow_up import file_name
    from kto_sweep.sweep.server_choice import find_sweep
    from kto_sweep.wandb_client.connection import connect

    home = Home.from_environment()
    target, ref = find_sweep(home, sweep, local=local)
    say(f"Talking to {target}", as_json=as_json or dry_run)  # the file can be piped
    view = read_sweep_shown(connect(target), target, ref)
    new = make(view, compare(view).configurations)
    path = file or Path(file_name(str(new.config["name"])))
    again = f"kto-sweep create {path}" + (f" --reuse {new.reuse}" if new.reuse else "")
    if path.exists() and not dry_run:
        raise UsageError(
            f"{path} already exists", hint=f"--file NAME.yaml, or to register that file: {again}"
        )
    result = {
        "from": str(ref),
        "file": str(path),
        "summary": new.summary,
        "notes": new.notes,
        "trials_to_train": new.price.trials,
        "seconds": new.price.seconds,
    }
    if dry_run:
        if as_json:
            print_json({**result, "id": None, "url": None, "text": new.text()})
            return
        click.echo(new.text(), nl=False)
        for note in new.notes:
            say(f"Note: {note}", as_json=True)
        return
    _write(path, new.text())
    say(f"Wrote {path}: {new.summary}", as_json=as_json)
    for note in new.notes:
        say(f"Note: {note}", as_json=as_json)
    created = create_sweep(
        home,
        path,
        project=ref.project,
        entity=ref.entity,
        local=target.local,
        reuse=new.reuse,
        say=lambda line: say(line, as_json=as_json),
    )
    if as_json:
        print_json({**result, "id": created.ref.id, "path": str(created.ref), "url": created.url})
        return
    say(created.summary(page_link(created.target, created.url)))
    say(f"Costs: {new.price}, judging by sweep {ref.id}")
    say(f"Next: kto-sweep agent {created.ref.argument}")


def _write(path: Path, text: str) -> None:
    try:
        with users_umask(), path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"could not write {path}: {error.strerror}", hint="--file in another folder"
        ) from error
