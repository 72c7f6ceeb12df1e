"""How commands speak: lines and tables for people, one JSON object for programs, errors with what to type."""

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160
"""Columns for tables that no terminal limits."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
local_option = click.option("--local", is_flag=True, help="Use the embedded server even with a W&B key.")
sweep_argument = click.argument("sweep", required=False)


def console() -> "Console":
    """Standard output, as wide as its terminal; rich honours NO_COLOR."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def say(text: str, *, as_json: bool = False) -> None:
    """One line for people; on standard error where standard output belongs to JSON."""
    click.echo(text, err=as_json)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; a number that is not finite becomes null, as JSON has none."""
    click.echo(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_error(message: str, hint: str, as_json: bool) -> None:
    """What went wrong and what to type, on standard error."""
    if as_json:
        click.echo(json.dumps({"error": message, "hint": hint}), err=True)
        return
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)


def number(value: Any) -> str:
    """A value for a table cell: learning rates as 2.3e-06, other numbers in four digits."""
    if isinstance(value, float):
        if value != 0 and math.isfinite(value) and (abs(value) < 1e-3 or abs(value) >= 1e6):
            mantissa, exponent = f"{value:.3e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
        return f"{value:.4g}"
    if value is None:
        return "-"
    return str(value)
