"""kto-sweep validate: all problems of a sweep file and its data at once, without a GPU or a server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kto_sweep.cli.output import json_option, print_json, say
from kto_sweep.cli.path_option import UserPath

if TYPE_CHECKING:
    from kto_sweep.errors import Problem


@click.command()
@click.argument("file", type=UserPath())
@json_option
def validate(file: Path, as_json: bool) -> int:
    """Check a sweep file and its data without registering anything.

    An error makes trials fail; a warning is allowed but probably a mistake. Exit code 2: there are errors.

    \b
    kto-sweep validate sweeps/lr_grid.yaml
    kto-sweep validate my.yaml --json
    """
    from kto_sweep.errors import Severity
    from kto_sweep.sweep_file.validate import validate as check
    from kto_sweep.text import counted

    validation = check(file)
    if as_json:
        print_json(
            {
                "file": str(file),
                "valid": not validation.errors,
                "errors": [_as_object(problem) for problem in validation.errors],
                "warnings": [_as_object(problem) for problem in validation.warnings],
                "method": validation.sweep.method if validation.sweep else None,
                "expected_trials": validation.sweep.expected_trials if validation.sweep else None,
            }
        )
        return 2 if validation.errors else 0
    for problem in (*validation.errors, *validation.warnings):
        say(problem.labelled)
    warnings = sum(problem.severity is Severity.WARNING for problem in validation.warnings)
    say(f"{file}: {counted(len(validation.errors), 'error')}, {counted(warnings, 'warning')}")
    if not validation.errors:
        say(f"Next: kto-sweep plan {file}")
    return 2 if validation.errors else 0


def _as_object(problem: "Problem") -> dict[str, str]:
    return {"where": problem.where, "what": problem.what, "why": problem.why, "hint": problem.hint}
