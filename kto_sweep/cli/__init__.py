"""The command line: one file per command, each loaded when it is called."""

import errno
import gc
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from kto_sweep import __version__
from kto_sweep.errors import KtoSweepError, UsageError

GARBAGE_COLLECTION_OBJECTS = 50_000
"""New objects between two collections."""

# name -> (group, summary). The summaries are here so that --help imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("Start", "Run a small sweep on this box, start to end"),
    "generate": ("Start", "Write a sweep file from a few flags"),
    "validate": ("Start", "Check a sweep file and its data"),
    "plan": ("Start", "Estimate memory, time and disk of a sweep"),
    "create": ("Start", "Register a sweep from a YAML file"),
    "train": ("Run", "Train a single run from flags"),
    "agent": ("Run", "Train the trials of a sweep on this box"),
    "merge": ("Run", "Merge a run's adapters into its base model"),
    "stop": ("Run", "Start no new trials; running ones finish"),
    "pause": ("Run", "Start no new trials until resumed"),
    "resume": ("Run", "Resume a paused or finished sweep"),
    "cancel": ("Run", "End a sweep and its running trials"),
    "models": ("Look", "List base models and the memory they need"),
    "lint": ("Look", "Check a data file before training"),
    "compare": ("Look", "Rank the trials of a sweep"),
    "replicate": ("Next", "Repeat the best configurations, new seeds"),
    "widen": ("Next", "Search beyond the end of a range"),
    "view": ("Look", "Print a link to the page of a sweep"),
    "chat": ("Look", "Show base and tuned answers side by side"),
    "status": ("Look", "Show the progress of a sweep"),
    "cache": ("Look", "Show or prune cached reference log-probs"),
    "sync": ("Serve", "Send runs that are not on their server"),
    "push": ("Serve", "Copy a sweep to another W&B server"),
    "serve": ("Serve", "Run the embedded server in the foreground"),
}


_LOGIN_TOKEN = re.compile(r"\?login=[\w-]{16}\.[\w-]+\.[\w-]{27}$")
TRAINING = frozenset({"agent", "train", "demo"})
_DISK_ERRORS = {
    errno.ENOTDIR,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_LIMIT_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


class LazyGroup(click.Group):
    """Loads a command's module only when that command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order that a new user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = "control" if cmd_name in {"stop", "pause", "resume", "cancel"} else cmd_name
        command = getattr(importlib.import_module(f"kto_sweep.cli.{module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by group, using only COMMANDS."""
        for group in dict.fromkeys(group for group, _ in COMMANDS.values()):
            with formatter.section(group):
                formatter.write_dl([(name, text) for name, (of, text) in COMMANDS.items() if of == group])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest names from all commands: click knows the loaded ones only."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kto-sweep")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Hyper-parameter sweeps for KTO fine-tuning, native to W&B sweeps.

    \b
    kto-sweep demo                          a real sweep in minutes: no account, no GPU
    kto-sweep create sweeps/lr_grid.yaml    register a sweep
    kto-sweep agent                         train its trials, on each box
    kto-sweep compare                       see which trial won
    """
    from pathlib import Path

    from kto_sweep import env_vars
    from kto_sweep.cli.output import notice
    from kto_sweep.home import Home

    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder was deleted", hint="cd to another folder") from error
    except OSError as error:
        raise UsageError(f"the current folder: {error.strerror}", hint="cd to another folder") from error
    for text in env_vars.prepare(keep=env_vars.NEW_NAMES.get(context.invoked_subcommand or "", ())):
        notice(text)
    Home.from_environment().keep_private()


def main() -> None:
    """Run the command line; report each error as one message and an exit code."""
    # By default Python looks for garbage among all objects again and again while those of a large sweep are
    # made, of which none is garbage: a quarter of the time.
    gc.set_threshold(GARBAGE_COLLECTION_OBJECTS, 50, 50)
    # A pasted page address logs a browser in, and runs record the command that made them.
    sys.argv[1:] = [_LOGIN_TOKEN.sub("", word) for word in sys.argv[1:]]
    sys.exit(run(sys.argv[1:]))


def run(args: list[str], *, worker: Sequence[str] | None = None) -> int:
    """The exit code of one command: see errors.EXIT_CODES.

    `worker`: the command of worker processes; None: the one that trains with torch.
    """
    from kto_sweep.cli.output import print_error
    from kto_sweep.streams import safe_streams

    as_json = "--json" in args
    with safe_streams() as stdout:
        code = _run(args, worker, as_json)
        stdout.flush()
        # What a command that trains prints is its progress, unless it is the one object.
        is_progress = not as_json and not TRAINING.isdisjoint(args)
        if stdout.failure is None or is_progress:
            return code
        print_error(f"standard output: {stdout.failure.strerror}; the rest was done", "", as_json)
        return code or 1


def _run(args: list[str], worker: Sequence[str] | None, as_json: bool) -> int:
    from kto_sweep.cli.output import print_error

    debug = "--debug" in args
    try:
        code: Any = cli.main(args, prog_name="kto-sweep", standalone_mode=False, obj=worker)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context is not None else ""
        print_error(error.format_message(), hint, as_json)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted", "", as_json)
        return 130
    except KtoSweepError as error:
        if debug:
            raise
        print_error(error.message, error.hint, as_json)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print_error(*_explain_unexpected(error, args), as_json)
        return 1
    return code if isinstance(code, int) else 0


def _explain_unexpected(error: Exception, args: list[str]) -> tuple[str, str]:
    """Message and hint for an unhandled error."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return (
            f"{error.filename or 'a disk'}: {error.strerror}",
            "KTO_SWEEP_HOME sets the folder for all files (default ~/.kto-sweep); it must be writable, with "
            "free space",
        )
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _LIMIT_ERRORS:
        what = "out of memory" if isinstance(error, MemoryError) else getattr(error, "strerror", "")
        return what, "free some, or raise the limits of this shell or box: ulimit -a"
    return (
        f"{type(error).__name__}: {error}",
        f"this is a bug in kto-sweep; for the traceback: kto-sweep --debug {' '.join(args)}",
    )
