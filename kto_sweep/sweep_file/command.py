"""The `command` of a sweep: what `wandb agent` starts for each trial, and the parameters that it fixes.

    command: ['${env}', '${interpreter}', '${program}', '--beta=0.5', '${args}']

`wandb agent` replaces each macro, and the program reads its command line. Here that line is read in one way:
`kto-sweep create` registers what it fixes as parameters, and both agents train with it. As on any command
line, what comes later wins: a flag after ${args} replaces the sweep's value, one before it is replaced.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kto_sweep.errors import Problem, TrialConfigError
from kto_sweep.json_file import parse_json
from kto_sweep.sweep_file.yaml_source import read_yaml
from kto_sweep.text import show
from kto_sweep.trial import PARAMETERS, check_value, leaves, parameter_name, unknown_parameter

PROGRAM = "agent.py"
"""The program of this project for `wandb agent`; the default of a sweep file."""
DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
"""W&B's command for a sweep that has none."""
ARGS_MACROS = (
    *("${args}", "${args_no_equals}", "${args_no_hyphens}", "${args_no_boolean_flags}"),
    *("${args_json}", "${args_json_file}", "${args_append_hydra}", "${args_override_hydra}"),
)
"""Each is the trial's parameters, in one of W&B's forms."""
MACROS = ("${env}", "${interpreter}", "${program}", *ARGS_MACROS)

ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
"""W&B's macro for an environment variable of the agent; may be part of a word."""

_INTERPRETER = re.compile(r"(.*/)?python[0-9.]*|-u")
_FLAG = re.compile(r"(?P<prefix>--?|\+{1,2})?(?P<key>[A-Za-z_][\w.-]*)(=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """One setting on a command line: `--beta=0.5`, `--beta 0.5`, `beta=0.5`, `+beta=0.5` or `--flag`."""

    position: int
    """Of its first word."""
    key: str
    """As written: beta, lora_r, lora.r or lora-r."""
    value: Any
    """Text, or True for a flag without a value."""

    @property
    def name(self) -> str | None:
        """The parameter that it sets; None if there is none."""
        return parameter_name(self._path)

    @property
    def _path(self) -> tuple[str, ...]:
        return tuple(self.key.replace("-", "_").split("."))

    def parse(self) -> tuple[Any, Problem | None]:
        """The value as a trial holds it, and the problem with name or value; its path is in `command`."""
        here = ("command", str(self.position))
        if self.name is None:
            problem = unknown_parameter(self._path)
            return None, replace(problem, path=here, what=f"--{self.key}: {problem.what}")
        value, wrong = check_value(self.name, _typed(self.name, self.value))
        return value, None if wrong is None else replace(wrong, path=here)


def _typed(name: str, value: Any) -> Any:
    """A flag's text as YAML where it is a list, and None or null as null."""
    if not isinstance(value, str):
        return value
    if value in ("None", "null") and PARAMETERS[name].optional:
        return None
    if value.startswith("["):
        source, _ = read_yaml(value)
        return value if source is None else source.data
    return value


@dataclass(frozen=True)
class SweepCommand:
    """The command of a sweep's configuration."""

    program: str
    """What it runs; empty if it runs no Python program."""
    wrappers: tuple[str, ...]
    """Words before the program, other than the interpreter: a launcher, or environment variables."""
    arguments: tuple[str, ...]
    """The words after the program."""
    start: int
    """The position of the first argument."""

    def fixed_flags(self) -> list[Flag]:
        """The flags that the file fixes; those with an environment variable are known to agents alone."""
        flags = read_flags(self.arguments, self.start)
        return [flag for flag in flags if not ENVIRONMENT.search(f"{flag.key}={flag.value}")]

    def environment_variables(self) -> list[str]:
        """The variables that the arguments name."""
        return [name for word in self.arguments for name in ENVIRONMENT.findall(word)]

    def expand(self, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> list[str]:
        """The program's command line for a trial, as `wandb agent` makes it."""
        words: list[str] = []
        for word in self.arguments:
            if word in ARGS_MACROS:
                words += [f"--{name}={value}" for name, value in config.items()]
            elif word not in MACROS:
                words.append(ENVIRONMENT.sub(lambda match: environ.get(match[1], match[1]), word))
        return words


def read_command(config: Mapping[str, Any]) -> SweepCommand:
    """The command of a sweep's configuration, or W&B's default."""
    command = config.get("command")
    words = [str(word) for word in command] if isinstance(command, list) and command else list(DEFAULT)
    given = str(config.get("program") or PROGRAM)
    for position, word in enumerate(words):
        if word == "-m" and position + 1 < len(words):
            return _split(words, f"-m {words[position + 1]}", position, position + 2)
        if word == "${program}" or word.endswith(".py"):
            return _split(words, given if word == "${program}" else word, position, position + 1)
    return SweepCommand("", tuple(words), (), len(words))


def _split(words: Sequence[str], program: str, before: int, start: int) -> SweepCommand:
    wrappers = [
        word
        for word in words[:before]
        if word not in ("${env}", "${interpreter}") and not _INTERPRETER.fullmatch(word)
    ]
    return SweepCommand(program, tuple(wrappers), tuple(words[start:]), start)


def read_flags(words: Sequence[str], start: int = 0) -> list[Flag]:
    """Every setting on a command line; a JSON object gives one for each of its keys.

    Raises TrialConfigError for a word that sets nothing.
    """
    flags: list[Flag] = []
    problems: list[Problem] = []
    position = 0
    while position < len(words):
        word, at = words[position], start + position
        position += 1
        if word in MACROS:
            continue
        if (settings := _json_settings(word)) is not None:
            flags += [Flag(at, str(key), value) for key, value in settings.items()]
            continue
        match = _FLAG.fullmatch(word)
        if match is None or not is_flag(word):
            hint = "write parameters as --name=value"
            problems.append(Problem(("command", str(at)), f"{show(word)} sets no parameter", hint=hint))
        elif match["value"] is not None:
            flags.append(Flag(at, match["key"], match["value"]))
        elif position < len(words) and _is_value(words[position]):
            flags.append(Flag(at, match["key"], words[position]))
            position += 1
        else:
            flags.append(Flag(at, match["key"], True))
    if problems:
        raise TrialConfigError("the sweep's command", problems)
    return flags


def is_flag(word: str) -> bool:
    """Whether a word sets a parameter, unlike the name of a sweep."""
    match = _FLAG.fullmatch(word)
    return _json_settings(word) is not None or bool(match and (match["prefix"] or match["value"] is not None))


def _is_value(word: str) -> bool:
    """Whether a word is the value of the flag before it."""
    return word not in MACROS and not re.match(r"[-+]{1,2}[A-Za-z_]", word)


def _json_settings(word: str) -> dict[str, Any] | None:
    """The object of ${args_json} or ${args_json_file}; None for any other word."""
    try:
        text = Path(word).read_text(encoding="utf-8") if word.endswith(".json") else word
        settings = parse_json(text) if text.startswith("{") else None
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def with_flags(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """A trial's configuration with what its command line fixes.

    The command line also has the configuration itself, which is left as it is. Names that begin with _ are
    not parameters. Raises TrialConfigError for a flag that is no parameter or has an invalid value.
    """
    fixed: dict[str, Any] = {}
    problems: list[Problem] = []
    for flag in read_flags(words):
        if flag.key.startswith("_"):
            continue
        if flag.key in config and _is_same(config[flag.key], flag.value):
            # The sweep's own value: it replaces what a flag before it has fixed.
            for path, _ in leaves({flag.key: config[flag.key]}):
                fixed.pop(parameter_name(path) or "", None)
            continue
        value, problem = flag.parse()
        if problem is not None:
            problems.append(problem)
        elif flag.name is not None:
            fixed[flag.name] = list(value) if isinstance(value, tuple) else value
    if problems:
        raise TrialConfigError("the sweep's command", problems)
    return {**_without(config, fixed), **fixed}


def _is_same(value: Any, written: Any) -> bool:
    """Whether a flag is a value of the configuration, as W&B writes it on a command line."""
    return value == written or str(value) == str(written) or isinstance(value, Mapping)


def _without(
    config: Mapping[str, Any], names: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The configuration without these parameters, in its groups too."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        here = (*path, str(key))
        if isinstance(value, Mapping):
            kept[key] = _without(value, names, here)
        elif str(key).startswith("_") or parameter_name(here) not in names:
            kept[key] = value
    return kept
