"""kto-sweep generate: a commented sweep file from a few flags and the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kto_sweep.cli.output import json_option, print_json, say
from kto_sweep.cli.path_option import UserPath
from kto_sweep.home import users_umask
from kto_sweep.sweep_file.generate_reasons import PRESET_NAMES
from kto_sweep.trial import PARAMETERS

METHODS = ("grid", "bayes", "random")
_SHORT_FLAGS = {"learning_rate": "--lr", "dataset": "--data"}


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with an option for every parameter of a trial."""
    for name, rule in reversed(list(PARAMETERS.items())):
        flags = [f"--{name.replace('_', '-')}", *([_SHORT_FLAGS[name]] if name in _SHORT_FLAGS else [])]
        command = click.option(*flags, name, metavar="VALUES", help=f"{rule.doc}.")(command)
    return command


@click.command()
@click.argument("method", type=click.Choice(METHODS))
@click.argument("out", type=UserPath())
@click.option("--preset", type=click.Choice(PRESET_NAMES), metavar="NAME", help="lora-7b, qlora-3b, ...")
@parameter_options
@json_option
def generate(method: str, out: Path, preset: str | None, as_json: bool, **flags: str | None) -> None:
    """Write the sweep file OUT; METHOD is grid, bayes or random.

    VALUES is one value, a list (5e-7,1e-7) or, unless METHOD is grid, a range (5e-7..1e-4); a list of data
    files is trained on together. If no flag has a list or range, the sweep searches the usual parameters.
    max_length, eval_fraction and rho come from the data. A comment gives the reason and source of each range.
    Never overwrites a file.

    \b
    kto-sweep generate grid my.yaml --data rows.jsonl --preset lora-7b
    kto-sweep generate grid my.yaml --data rows.jsonl --model-size 3b,7b --lr 5e-7,1e-7 --batch-size 6,8
    kto-sweep generate bayes my.yaml --data rows.jsonl --model-size 0.5b --lr 5e-7..1e-4 --beta 0.02..0.5
    """
    from kto_sweep.errors import SweepFileError, UsageError
    from kto_sweep.models.presets import PRESETS
    from kto_sweep.parameter_types import source_names
    from kto_sweep.sweep_file.generate import (
        Fixed,
        complete_settings,
        inspect_data,
        parse_flag,
        preset_settings,
        to_yaml,
    )
    from kto_sweep.sweep_file.sweep_config import check_sweep_text

    if out.exists():
        raise UsageError(f"{out} already exists", hint="choose another name, or remove it")
    given = preset_settings(preset) if preset else {}
    given |= {name: parse_flag(name, text, method) for name, text in flags.items() if text is not None}
    data = given.get("dataset")
    if not isinstance(data, Fixed):
        raise UsageError("no data", hint="--data rows.jsonl, or --data examples/support_replies.jsonl")
    if not given.keys() & {"model", "model_size"}:
        raise UsageError("no base model", hint="--model-size 0.5b, --model FOLDER, or --preset lora-7b")
    model_name = given.get("model") or given.get("model_size")
    model = str(model_name.value) if isinstance(model_name, Fixed) else None
    if model is not None and "model" not in given:
        model = PRESETS[model].model
    summary = inspect_data(source_names(data.value), model)
    settings, reasons = complete_settings(method, given, summary)
    text = to_yaml(method, settings, reasons, summary, str(out))
    checked = check_sweep_text(text, out)
    if checked.sweep is None:
        raise SweepFileError("these flags", checked.located(checked.problems))
    try:
        with users_umask(), out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"could not write {out}: {error.strerror}", hint="choose another folder") from error
    expected = checked.sweep.expected_trials
    if as_json:
        print_json({"file": str(out), "method": method, "expected_trials": expected})
        return
    say(f"Wrote {out}: {method}, {expected} trial{'' if expected == 1 else 's'}")
    say(f"Next: kto-sweep plan {out}")
