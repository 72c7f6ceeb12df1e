"""Checks of a sweep file's `command` and `program`, and the parameters that they fix."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from kto_sweep.errors import Problem, TrialConfigError
from kto_sweep.search.options import BLOCK
from kto_sweep.search.space import SEED
from kto_sweep.sweep_file.command import (
    DEFAULT,
    ENVIRONMENT,
    MACROS,
    PROGRAM,
    SweepCommand,
    read_command,
)
from kto_sweep.sweep_file.parameters import entries
from kto_sweep.text import listed, nearest, show
from kto_sweep.trial import leaves, parameter_name

_MACRO = re.compile(r"\$\{[^}]*\}")


def fixed_parameters(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The parameters that a sweep file's command fixes, by name, and every problem of the command.

    `config` is the file's data; a parameter that its `parameters` section sets too is a problem.
    """
    problems = list(_check_words(config.get("command")))
    if problems:
        return {}, problems
    command = read_command(config)
    if not command.program:
        problem = Problem(
            ("command",),
            "runs no Python program",
            "It would run something else than kto-sweep's training.",
            f"command: {listed(DEFAULT)}",
        )
        return {}, [problem]
    try:
        flags = command.fixed_flags()
    except TrialConfigError as error:
        return {}, list(error.problems)
    elsewhere = _set_elsewhere(config)
    fixed: dict[str, Any] = {}
    for flag in flags:
        value, wrong = flag.parse()
        if wrong is not None:
            problems.append(wrong)
        elif flag.name in elsewhere:
            what, why = f"{flag.name} is set twice", f"{elsewhere[flag.name]} sets it too."
            problems.append(Problem(("command", str(flag.position)), what, why, "keep one of the two"))
        elif flag.name is not None:
            fixed[flag.name] = list(value) if isinstance(value, tuple) else value
    return fixed, problems


def _set_elsewhere(config: Mapping[str, Any]) -> dict[str | None, str]:
    """The parameters that other keys of the file set, and the key that does."""
    section, block = config.get("parameters"), config.get(BLOCK)
    paths = _section_paths(section) if isinstance(section, Mapping) else ()
    elsewhere: dict[str | None, str] = {parameter_name(path): "parameters" for path in paths}
    if isinstance(block, Mapping) and block.get("replicates"):
        elsewhere[SEED] = f"{BLOCK}.replicates"
    return elsewhere


def _section_paths(section: Mapping[Any, Any]) -> Iterator[tuple[str, ...]]:
    """The nested name of every parameter of a section, those in the values of a group too."""
    for entry in entries(section):
        yield entry.path
        body = entry.body if isinstance(entry.body, Mapping) else {}
        listed_values = body.get("values")
        for value in [body.get("value"), *(listed_values if isinstance(listed_values, list) else ())]:
            if isinstance(value, Mapping):
                yield from (path for path, _ in leaves(value, entry.path))


def _check_words(command: Any) -> Iterator[Problem]:
    """Words that are not text, and macros that W&B would drop or pass on as they are."""
    for position, word in enumerate(command if isinstance(command, list) else ()):
        here = ("command", str(position))
        if isinstance(word, list | Mapping) or word is None:
            hint = "quote it" if word is None or isinstance(word, Mapping) else "one word per item"
            yield Problem(here, f"{show(word)} is not a word of a command", hint=hint)
            continue
        for macro in _MACRO.findall(ENVIRONMENT.sub("", str(word))):
            if macro not in MACROS:
                hint = nearest(macro, MACROS) or f"one of {', '.join(MACROS)}, ${{envvar:NAME}}"
                yield Problem(here, f"{macro} is not a macro of W&B", "W&B drops it.", hint)
            elif word != macro:
                why = "W&B replaces a macro only where it is a word of its own."
                yield Problem(here, f"{macro} inside {show(word)}", why, f"'{macro}' as an item of its own")


def command_notices(command: SweepCommand) -> Iterator[str]:
    """What `kto-sweep agent` does not take from a valid command."""
    if command.program and PurePath(command.program).name != PROGRAM:
        yield (
            f"program {command.program}: only `wandb agent` runs it; `kto-sweep agent` always runs its own "
            f"KTO training, as program: {PROGRAM} does"
        )
    if command.wrappers:
        yield f"command: {' '.join(command.wrappers)} has no effect under `kto-sweep agent`"
    for name in command.environment_variables():
        yield f"command: each agent reads {name} from its environment, so plan does not know it"
