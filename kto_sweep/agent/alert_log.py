"""Sends a run's alerts to W&B, and keeps the last ones in its summary and its folder."""

import contextlib
import json
from pathlib import Path

import wandb

from kto_sweep.alerts import SUMMARY, AlertLevel, RunAlert, alerts_for_summary, alerts_of
from kto_sweep.json_file import parse_json, write_atomic

ALERTS = "alerts.json"
"""A run's alerts, in its folder: an offline attempt has no server to read those of an earlier one from."""


class AlertLog:
    """The alerts of one open run."""

    def __init__(self, run: wandb.Run, folder: Path, keep: int = 0) -> None:
        """Keep an earlier attempt's alerts up to step `keep`; later steps raise theirs again."""
        self._run = run
        self._path = folder / ALERTS
        # An error ended the earlier attempt, but not this one.
        self._alerts = [
            alert for alert in _read(self._path) if alert.step <= keep and alert.level is not AlertLevel.ERROR
        ]
        if self._alerts or run.summary.get(SUMMARY):
            self._publish()

    @property
    def has_error(self) -> bool:
        """Whether an alert says that the trial has failed."""
        return any(alert.level is AlertLevel.ERROR for alert in self._alerts)

    def send(self, alert: RunAlert) -> None:
        """Send an alert to W&B and add it to the run's summary."""
        self._run.alert(f"KTO: {alert.title}", f"step {alert.step}: {alert.text}", level=alert.level.value)
        self._alerts.append(alert)
        self._publish()

    def _publish(self) -> None:
        entries = alerts_for_summary(self._alerts)
        self._run.summary[SUMMARY] = entries
        with contextlib.suppress(OSError):  # a full disk must not end the trial
            write_atomic(self._path, json.dumps({SUMMARY: entries}) + "\n")


def _read(path: Path) -> tuple[RunAlert, ...]:
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return alerts_of(stored) if isinstance(stored, dict) else ()
