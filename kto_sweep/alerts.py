"""Alerts of a run, with their levels, and the rules such as `kl_raw > 10` that raise them."""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
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


SUMMARY = "trial/alerts"
"""The key of a run's summary with its alerts: a list of {level, title, text, step}."""
MAX_ALERTS = 20
"""Alerts in the summary; of more, the last ones."""
MAX_TEXT = 500
"""Characters of an alert's text in the summary."""


class AlertLevel(StrEnum):
    """How bad it is; W&B's words."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    """The trial has failed, or its training broke."""

    @property
    def label(self) -> str:
        """The word at the start of a line."""
        return {AlertLevel.INFO: "NOTE", AlertLevel.WARN: "WARNING"}.get(self, "ERROR")


@dataclass(frozen=True)
class RunAlert:
    """One alert of a run."""

    level: AlertLevel
    title: str
    """What it is about: `gradient norm`, or the rule."""
    text: str
    step: int
    """The optimizer step at which it was raised."""

    def __str__(self) -> str:
        return f"{self.level.label}: step {self.step}: {self.title}: {self.text}"


def alerts_for_summary(alerts: Sequence[RunAlert]) -> list[dict[str, Any]]:
    """The value of SUMMARY for these alerts, the oldest first."""
    return [asdict(alert) | {"text": alert.text[:MAX_TEXT]} for alert in alerts[-MAX_ALERTS:]]


def alerts_of(summary: Mapping[str, Any]) -> tuple[RunAlert, ...]:
    """The alerts in a run's summary, the oldest first; skips entries that are not alerts."""
    entries = summary.get(SUMMARY)
    alerts = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            level, step = AlertLevel(entry["level"]), int(entry["step"])
            alerts.append(RunAlert(level, str(entry["title"]), str(entry["text"]), step))
        except (KeyError, TypeError, ValueError):
            continue
    return tuple(alerts)


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


class RuleChecker:
    """Checks the metrics of one run against the rules that it has not met yet."""

    def __init__(self, rules: Sequence[AlertRule]) -> None:
        self._pending = list(dict.fromkeys(rules))

    def check(self, step: int, values: Mapping[str, float]) -> list[RunAlert]:
        """The alerts that the metrics of a step raise; a rule raises one alert per run."""
        met = [rule for rule in self._pending if rule.metric in values and rule.is_met(values[rule.metric])]
        self._pending = [rule for rule in self._pending if rule not in met]
        return [
            RunAlert(AlertLevel.WARN, str(rule), f"{rule.metric} is {values[rule.metric]:.4g}", step)
            for rule in met
        ]
