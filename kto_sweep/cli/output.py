"""Output of commands: lines and tables for people, one JSON object for programs, errors with a hint."""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    import wandb
    from rich.console import Console

    from kto_sweep.sweep.ref import SweepRef
    from kto_sweep.sweep.view import SweepView
    from kto_sweep.wandb_client.connection import Target

PIPE_WIDTH = 160
"""Characters of a table's width when standard output is not a terminal."""

_SHOWN_AFTER = 1.0
"""Seconds of work after which its progress is shown."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
local_option = click.option("--local", is_flag=True, help="Use the embedded server even with a W&B key.")
sweep_argument = click.argument("sweep", required=False)


def console() -> "Console":
    """A console on standard output, as wide as the terminal; rich respects NO_COLOR."""
    from kto_sweep.terminal import LineConsole

    return LineConsole(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def say(text: str, *, as_json: bool = False) -> None:
    """Print one line for people; to standard error if standard output is JSON."""
    click.echo(_for_terminal(text, sys.stderr if as_json else sys.stdout), err=as_json)


def _for_terminal(text: str, stream: TextIO) -> str:
    """The text without control characters, wrapped at spaces if the stream is a terminal."""
    from kto_sweep.text import printable

    text = printable(text)
    if not stream.isatty():
        return text
    from kto_sweep.terminal import wrap_words

    return wrap_words(text, shutil.get_terminal_size().columns)


@contextmanager
def counting(what: str, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A function that shows on a terminal how many of `what` are done; work of a second shows nothing."""
    if not show or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} {task.description}"), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)
    start = time.monotonic()

    def update(done: int) -> None:
        if time.monotonic() - start >= _SHOWN_AFTER:
            bar.start()  # does nothing when it has started
        bar.update(task, completed=done)

    try:
        yield update
    finally:
        bar.stop()


def read_sweep_shown(
    api: "wandb.Api | None", target: "Target", ref: "SweepRef", metrics: Collection[str] | None = ()
) -> "SweepView":
    """The sweep with its trials, whose count is shown while they are read; arguments as of `read_sweep`.

    Raises ServerError if the sweep does not exist or the server does not respond.
    """
    from kto_sweep.wandb_client.reader import read_sweep

    with counting("trials read", show=True) as count:
        return read_sweep(api, target, ref, count, metrics)


def page_link(target: "Target", url: str, *, as_json: bool = False) -> str:
    """A page's address for `say`: each that is printed goes through here, and may log the browser in."""
    return target.page_link(url, sys.stderr if as_json else sys.stdout)


def notice(text: str) -> None:
    """Print a note to standard error, as standard output may be JSON or CSV."""
    click.echo(_for_terminal(f"Note: {text}", sys.stderr), err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN and infinities become null, because JSON has neither."""
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
    """Print an error and its hint to standard error."""
    if as_json:
        click.echo(json.dumps({"error": message, "hint": hint}), err=True)
        return
    click.echo(_for_terminal(f"Error: {message}", sys.stderr), err=True)
    if hint:
        click.echo(_for_terminal(f"Hint: {hint}", sys.stderr), err=True)
