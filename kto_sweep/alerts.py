"""Alert rules such as `kl_raw > 10`: parses them, sends them to agents, raises each at most once per run."""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kto_sweep.errors import UsageError
from kto_sweep.metrics import METRICS, NOT_LOGGED
from kto_sweep.text import nearest, number_from_text

PARAMETER = "_alerts"
"""The parameter of a registered sweep that holds its file's rules, joined by `;`.

W&B and the embedded server send a sweep's parameters to every agent, but might reject unknown keys. Like all
names that begin with _, it is not a parameter of the trial.
"""

_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_RULE = re.compile(r"([^<>=;\s]+)\s*(>=|<=|>|<)\s*([^<>=;\s]+)")
_EXAMPLE = "kl_raw > 10"
_LOGGED = tuple(name for name in METRICS if name not in NOT_LOGGED and not name.startswith("trial/"))


@dataclass(frozen=True)
class AlertRule:
    """A metric and its limit."""

    metric: str
    sign: str
    """`>`, `>=`, `<` or `<=`."""
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.limit:.15g}"

    def is_met(self, value: float) -> bool:
        """Whether the value meets the rule; NaN never does."""
        return bool(_SIGNS[self.sign](value, self.limit))


def parse_rule(text: str) -> AlertRule:
    """The rule in `text`. Raises UsageError with a valid rule as its hint."""
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not an alert rule: write a metric, one of > >= < <=, and a number", hint=_EXAMPLE
        )
    name, sign, limit = match.groups()
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


def parameter_of(rules: Iterable[AlertRule]) -> dict[str, str]:
    """The value of PARAMETER that carries these rules."""
    return {"value": "; ".join(str(rule) for rule in rules)}


def rules_of(config: Mapping[str, Any]) -> tuple[AlertRule, ...]:
    """The rules in a trial's configuration; skips rules of other versions that cannot be parsed."""
    rules = []
    for text in str(config.get(PARAMETER) or "").split(";"):
        try:
            rules.append(parse_rule(text))
        except UsageError:
            continue
    return tuple(rules)


def without_alert_rules(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A registered sweep's parameters without PARAMETER."""
    return {name: value for name, value in parameters.items() if name != PARAMETER}


class RunAlerts:
    """Checks the metrics of one run against the rules that it has not met yet."""

    def __init__(self, rules: Sequence[AlertRule]) -> None:
        self._pending = list(dict.fromkeys(rules))

    def check(self, values: Mapping[str, float]) -> list[tuple[str, str]]:
        """Title and text of each alert that these metrics raise; a rule raises one alert per run."""
        met = [rule for rule in self._pending if rule.metric in values and rule.is_met(values[rule.metric])]
        self._pending = [rule for rule in self._pending if rule not in met]
        return [(f"KTO: {rule}", f"{rule.metric} is {values[rule.metric]:.4g}") for rule in met]
