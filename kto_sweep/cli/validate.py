"""kto-sweep validate: all problems of a sweep file and its data at once, without a GPU or a server."""

from pathlib import Path

import click

from kto_sweep.cli.output import json_option, print_json, say


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def validate(file: Path, as_json: bool) -> int:
    """Check a sweep file and its data without registering anything.

    An error makes trials fail; a warning is allowed but probably a mistake. Exit code 2: there are errors.

    \b
    kto-sweep validate sweeps/lr_grid.yaml
    kto-sweep validate my.yaml --json
    """
    from dataclasses import asdict

    from kto_sweep.sweep_file.validate import validate as check
    from kto_sweep.text import counted

    found = check(file)
    if as_json:
        print_json(
            {
                "file": str(file),
                "valid": not found.errors,
                "errors": [asdict(problem) for problem in found.errors],
                "warnings": [asdict(problem) for problem in found.warnings],
                "method": found.spec.method if found.spec else None,
                "expected_trials": found.spec.expected_trials if found.spec else None,
            }
        )
        return 2 if found.errors else 0
    for word, problems in (("Error", found.errors), ("Warning", found.warnings)):
        for problem in problems:
            say(f"{word}: {problem}")
    say(f"{file}: {counted(len(found.errors), 'error')}, {counted(len(found.warnings), 'warning')}")
    if not found.errors:
        say(f"Next: kto-sweep plan {file}")
    return 2 if found.errors else 0
