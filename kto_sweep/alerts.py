"""Alert rules such as `kl_raw > 10`: read, carried to the agents, and met at most once by each run."""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.errors import UsageError
from kto_sweep.metrics import METRICS, NOT_LOGGED
from kto_sweep.text import nearest, number_from_text

PARAMETER = "_alerts"
"""The parameter of a registered sweep that holds its file's rules, as one text with `;` between them.

Both W&B and the embedded server hand a sweep's parameters to every agent, wherever it runs; they might
refuse other keys of ours. Like all names that begin with _, it is none of a trial's own parameters.
"""

_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_RULE = re.compile(r"([^<>=;\s]+)\s*(>=|<=|>|<)\s*([^<>=;\s]+)")
_EXAMPLE = "kl_raw > 10"
_LOGGED = tuple(name for name in METRICS if name not in NOT_LOGGED and not name.startswith("trial/"))


@dataclass(frozen=True)
class AlertRule:
    """A metric and the limit that it should not pass."""

    metric: str
    sign: str
    """`>`, `>=`, `<` or `<=`."""
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.limit:.15g}"

    def is_met(self, value: float) -> bool:
        """Whether the value is beyond the limit; NaN never is."""
        return bool(_SIGNS[self.sign](value, self.limit))


def read_rule(text: str) -> AlertRule:
    """The rule that a text means. Raises UsageError: what is wrong, and in its hint what to type."""
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{text!r} is not an alert: it takes a metric, one of > >= < <=, and a number", hint=_EXAMPLE
        )
    name, sign, limit = found.groups()
    if name not in _LOGGED:
        near = nearest(name, _LOGGED) or nearest(f"eval/{name}", _LOGGED)
        raise UsageError(
            f"{text!r}: {name} is not a metric that trials log",
            hint=f"{near} {sign} {limit}" if near else f"one of {', '.join(_LOGGED)}",
        )
    number = number_from_text(limit)
    if number is None:
        raise UsageError(f"{text!r}: {limit} is not a number", hint=f"{name} {sign} 10")
    return AlertRule(name, sign, float(number))


def carried(rules: Iterable[AlertRule]) -> dict[str, str]:
    """The definition of PARAMETER for these rules."""
    return {"value": "; ".join(str(rule) for rule in rules)}


def carried_by(config: Mapping[str, Any]) -> tuple[AlertRule, ...]:
    """The rules in a trial's configuration; those of another version, which cannot be read, are left out."""
    rules = []
    for text in str(config.get(PARAMETER) or "").split(";"):
        try:
            rules.append(read_rule(text))
        except UsageError:
            continue
    return tuple(rules)


def without_rules(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a registered sweep that are its trials' own."""
    return {name: value for name, value in parameters.items() if name != PARAMETER}


class Alerts:
    """The rules that one run has not met yet."""

    def __init__(self, rules: Sequence[AlertRule]) -> None:
        self._waiting = list(dict.fromkeys(rules))

    def see(self, values: Mapping[str, float]) -> list[tuple[str, str]]:
        """Title and text of each alert that these metrics give; each rule gives one in a run's life."""
        met = [rule for rule in self._waiting if rule.metric in values and rule.is_met(values[rule.metric])]
        self._waiting = [rule for rule in self._waiting if rule not in met]
        return [(f"KTO: {rule}", f"{rule.metric} is {values[rule.metric]:.4g}") for rule in met]
