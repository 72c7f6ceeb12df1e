"""Checks printed and documented commands: each must have a name, options and arguments that exist."""

import re
import shlex
from itertools import takewhile

import click

from kto_sweep.cli import cli

_PRINTED = re.compile(r"(?:: |, then |, or |^)kto-sweep (?=[a-z])([^\n`]*)", re.MULTILINE)
"""A command that a line names to type."""
_END = re.compile(r"\s{2,}|\s\(|\)|, (?:then|or) |; |\s+#|\s\.\.\.")
"""What ends a command within its line."""


def check_command(words: list[str]) -> None:
    """Raises click.UsageError for words after `kto-sweep` that it does not accept."""
    words = list(takewhile(lambda word: word not in {">", "|", "&&", "&"}, words))  # what the shell reads
    top = click.Context(cli, info_name="kto-sweep")
    command = cli.get_command(top, words[0])
    if command is None:
        raise click.UsageError(f"no command: {words}")
    context = click.Context(command, parent=top, info_name=words[0])
    _, left, _ = command.make_parser(context).parse_args(words[1:])
    if left:
        raise click.UsageError(f"too many arguments: {words}")


def check_output(text: str) -> None:
    """Raises click.UsageError if a command in this output of the tool does not exist as it stands."""
    for line in _PRINTED.findall(text):
        check_command(shlex.split(_END.split(line)[0]))
