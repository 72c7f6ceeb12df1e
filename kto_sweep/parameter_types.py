"""The types of a trial's parameters, and the definition of one parameter."""

import math
from dataclasses import dataclass
from typing import Protocol

from kto_sweep.errors import Problem, UsageError
from kto_sweep.paths import MAX_NAME_BYTES, user_path
from kto_sweep.text import listed, nearest, number_from_text, show


class ParameterType(Protocol):
    """The values that a parameter accepts."""

    @property
    def description(self) -> str:
        """The accepted values, for a sentence: `a whole number of at least 1`."""

    def convert(self, value: object) -> object:
        """The value as a trial holds it. Raises ValueError when it is not accepted."""

    def suggest(self, value: object) -> str:
        """A value to type instead; empty if there is no similar one."""


@dataclass(frozen=True)
class WholeNumber:
    """Whole numbers; 8.0 and the text "8" are 8."""

    least: int
    most: int | None = None

    @property
    def description(self) -> str:
        """The accepted values."""
        span = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
        return f"a whole number {span}"

    def convert(self, value: object) -> int:
        """The int. Raises ValueError."""
        number = _number(value)
        if number != int(number) or number < self.least or (self.most is not None and number > self.most):
            raise ValueError
        return int(number)

    def suggest(self, value: object) -> str:
        """Empty: the intended number is unknown."""
        return ""


@dataclass(frozen=True)
class Real:
    """Finite numbers between two ends."""

    low: float
    high: float = math.inf
    with_low: bool = False
    """True: `low` itself is accepted."""
    with_high: bool = False

    @property
    def description(self) -> str:
        """The accepted values."""
        low = f"{'of at least' if self.with_low else 'above'} {self.low:g}"
        if self.high == math.inf:
            return f"a number {low}"
        return f"a number {low} and {'at most' if self.with_high else 'below'} {self.high:g}"

    def convert(self, value: object) -> float:
        """The float. Raises ValueError."""
        number = float(_number(value))
        above = number > self.low or (self.with_low and number == self.low)
        below = number < self.high or (self.with_high and number == self.high)
        if not (above and below):
            raise ValueError
        return number

    def suggest(self, value: object) -> str:
        """Empty: the intended number is unknown."""
        return ""


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    options: tuple[str, ...]

    @property
    def description(self) -> str:
        """The accepted values."""
        return f"one of {', '.join(self.options)}"

    def convert(self, value: object) -> str:
        """The word. Raises ValueError."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError
        return value

    def suggest(self, value: object) -> str:
        """The nearest word; `none` for False, which YAML reads from an unquoted no or off."""
        if value is False and "none" in self.options:
            return "none"
        return nearest(str(value).lower(), self.options) or ""


@dataclass(frozen=True)
class Text:
    """Non-empty text."""

    description: str = "text"

    def convert(self, value: object) -> str:
        """The text. Raises ValueError."""
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    def suggest(self, value: object) -> str:
        """The value in quotes."""
        return "" if isinstance(value, str) else f'"{show(value)}"'


@dataclass(frozen=True)
class ModelName(Text):
    """A hub id or a path, which need not exist on this machine, but could."""

    description: str = f"a hub id or a path, with names of up to {MAX_NAME_BYTES} bytes and existing ~users"

    def convert(self, value: object) -> str:
        """The name. Raises ValueError."""
        name = super().convert(value)
        try:
            user_path(name)
        except UsageError as error:
            raise ValueError from error
        return name


@dataclass(frozen=True)
class Flag:
    """true or false, also as text."""

    description: str = "true or false"

    def convert(self, value: object) -> bool:
        """The bool. Raises ValueError."""
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise ValueError
        return value

    def suggest(self, value: object) -> str:
        """Empty: `description` is sufficient."""
        return ""


@dataclass(frozen=True)
class Targets:
    """Names of the layers that get adapters, or all-linear."""

    description: str = "all-linear, or a list of layer names"

    def convert(self, value: object) -> str | tuple[str, ...]:
        """The word all-linear, or the names as a tuple. Raises ValueError."""
        if value == "all-linear":
            return "all-linear"
        if not isinstance(value, list | tuple) or not value:
            raise ValueError
        return tuple(Text().convert(name) for name in value)

    def suggest(self, value: object) -> str:
        """A single name as a list."""
        if not isinstance(value, str):
            return ""
        return nearest(value, ["all-linear"]) or listed([value])


@dataclass(frozen=True)
class Sources:
    """The name of a data source, or a list of several names."""

    description: str = "a name, or a list of names"

    def convert(self, value: object) -> str | tuple[str, ...]:
        """The name, or several as a tuple. Raises ValueError."""
        if not isinstance(value, list | tuple):
            return Text().convert(value)
        names = tuple(Text().convert(name) for name in value)
        if not names:
            raise ValueError
        return names[0] if len(names) == 1 else names

    def suggest(self, value: object) -> str:
        """The value in quotes."""
        return Text().suggest(value) if isinstance(value, int | float) else ""


def source_names(value: object) -> tuple[str, ...]:
    """The names in a value of `Sources`, such as a trial's dataset; none for None."""
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)


def describe_sources(value: object) -> str:
    """The names in a value of `Sources` for a message: `a.jsonl, b.jsonl and 7 more`."""
    names = source_names(value)
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


@dataclass(frozen=True)
class ParameterDefinition:
    """One parameter of a trial."""

    name: str
    type: ParameterType
    default: object
    """None if there is no default: see `optional`."""
    optional: bool
    """True: null is the same as not set."""
    doc: str
    """What it means, with its unit; without a period."""
    noun: str
    """For messages: `0 is not a batch size`."""

    def parse(self, value: object) -> tuple[object, Problem | None]:
        """The value as a trial holds it, and the problem with it, if any."""
        if value is None and self.optional:
            return None, None
        try:
            return self.type.convert(value), None
        except ValueError:
            return value, self._problem(value)

    def _problem(self, value: object) -> Problem:
        example = self.type.suggest(value)
        if not example and self.default is not None:
            example = f"the default is {show(self.default)}"
        return Problem(
            (self.name,),
            f"{show(value)} is not {self.noun}",
            f"{self.doc}: {self.type.description}.",
            example,
        )


def _number(value: object) -> int | float:
    """A number, also from text. Raises ValueError."""
    if isinstance(value, str):
        value = number_from_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return value
