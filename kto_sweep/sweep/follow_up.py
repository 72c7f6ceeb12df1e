"""Sweep files that follow up on a sweep, as data: its configuration with changes, its name, its price.

replication, widening --> FollowUp --> the file that `kto-sweep replicate` and `kto-sweep widen` register
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kto_sweep.alerts import PARAMETER, rules_of, without_alert_rules
from kto_sweep.compare.ranking import Configuration
from kto_sweep.errors import UsageError
from kto_sweep.search.options import BLOCK
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.gpu_hours import gpu_time, seconds_per_trial
from kto_sweep.sweep.grid_status import read_grid_status
from kto_sweep.sweep.ref import DEFAULT_PROJECT, LOCAL_ENTITY
from kto_sweep.sweep.reuse import find_reusable
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.sweep_file.command import read_command
from kto_sweep.sweep_file.sweep_config import expected_trials
from kto_sweep.text import counted, hours

MAX_NAME = 60
"""Maximum characters of a file's or sweep's name."""
_FIRST_KEYS = (
    "name",
    "description",
    "project",
    "entity",
    "program",
    "command",
    "method",
    "run_cap",
    "metric",
)


@dataclass(frozen=True)
class Price:
    """What trials cost, judging by earlier ones."""

    trials: int | None
    """None: unlimited."""
    seconds: float | None
    """Of devices; None if no earlier trial has a time."""
    unit: str = "device-hours"
    """`GPU-hours`, `CPU-hours` or `device-hours`."""

    def __str__(self) -> str:
        trials = "unlimited trials" if self.trials is None else counted(self.trials, "trial")
        if self.seconds is None:
            return trials
        return f"{trials}, about {hours(self.seconds / 3600)} {self.unit}"


@dataclass(frozen=True)
class FollowUp:
    """A sweep file to write and register."""

    config: Mapping[str, Any]
    """The file's keys."""
    summary: str
    """What it trains, in a sentence without its period."""
    price: Price
    notes: tuple[str, ...] = ()
    """What it leaves out of the earlier sweep's configuration, and why."""
    reuse: str | None = None
    """The sweep whose finished trials the new one reuses."""

    def text(self) -> str:
        """The file's text."""
        keys = [*_FIRST_KEYS, *(key for key in self.config if key != "parameters"), "parameters"]
        ordered = {key: self.config[key] for key in keys if key in self.config}
        dumped = yaml.safe_dump(
            ordered, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True
        )
        reuse = f" --reuse {self.reuse}" if self.reuse else ""
        comment = (f"{self.summary}.", f"Costs: {self.price}.", f"Start: kto-sweep create FILE{reuse}")
        return "".join(f"# {line}\n" for line in comment) + f"\n{dumped}"


def as_sweep_file(view: SweepView, config: Mapping[str, Any]) -> dict[str, Any]:
    """A changed registered configuration as the keys of a sweep file.

    Alerts are rules again, and what the command fixes is not a parameter too.
    """
    fixed = {flag.name for flag in read_command(config).fixed_flags()}
    section = without_alert_rules(config["parameters"])
    parameters = {name: body for name, body in section.items() if name not in fixed}
    block = dict(config.get(BLOCK) or {})
    alerts = view.config["parameters"].get(PARAMETER)
    if isinstance(alerts, Mapping) and (rules := rules_of({PARAMETER: alerts.get("value")})):
        block["alerts"] = [str(rule) for rule in rules]
    file = {key: value for key, value in config.items() if key not in (BLOCK, "project", "entity")}
    if view.ref.project != DEFAULT_PROJECT:
        file["project"] = view.ref.project
    if view.ref.entity != LOCAL_ENTITY:
        file["entity"] = view.ref.entity
    return {**file, **({BLOCK: block} if block else {}), "parameters": parameters}


def new_name(name: str, suffix: str) -> str:
    """The name with a suffix: `lr-grid-wider`, and of that one `lr-grid-wider-2`."""
    match = re.fullmatch(rf"(.*)-{suffix}(?:-(\d+))?", printable(name))
    return f"{match[1]}-{suffix}-{int(match[2] or 1) + 1}" if match else f"{printable(name)}-{suffix}"


def file_name(name: str) -> str:
    """A file name for a sweep of this name, which is untrusted."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'sweep'}.yaml"


def label(view: SweepView) -> str:
    """The sweep for a message: its id, and its name if it has one."""
    name = printable(view.name)
    return view.ref.id if name in ("", view.ref.id) else f"{view.ref.id} ({name})"


def printable(name: str) -> str:
    """A sweep's name, which is untrusted, on one line."""
    return "".join(char for char in name if char.isprintable())[:MAX_NAME]


def price(view: SweepView, counts: Sequence[tuple[Sequence[TrialRecord], int]]) -> Price:
    """The price of `count` more trials like each of these, judging by their times in this sweep."""
    unit = gpu_time(view, read_grid_status(view)).unit
    total = sum(count for _, count in counts)
    seconds = 0.0
    for trials, count in counts:
        each = seconds_per_trial(view, trials)
        if each is None:
            return Price(total, None, unit)
        seconds += count * each
    return Price(total, seconds, unit)


def trials_to_train(view: SweepView, config: Mapping[str, Any]) -> int:
    """Number of cells of a grid, by its registered configuration, that the sweep has not finished."""
    space, _ = parse_space(without_alert_rules(config["parameters"]))
    expected = expected_trials(config, space or Space(())) or 0
    return max(0, expected - len(find_reusable(config, view)))


def require_best(view: SweepView, best: Sequence[Configuration]) -> None:
    """Raises UsageError if no configuration has a value."""
    if not best:
        raise UsageError(
            f"{view.ref} has no finished trial with a value of {view.metric}",
            hint=f"kto-sweep agent {view.ref.argument}",
        )
