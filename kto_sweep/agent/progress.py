"""The display of a running agent: a progress bar for each live trial on a terminal, else plain lines."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, NoReturn, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kto_sweep.alerts import RunAlert
from kto_sweep.text import duration, number, progress_text
from kto_sweep.trial import lookup

WIDE = 100
"""Characters of a terminal with room for a long bar."""
TIME_WIDTH = 9
"""Characters of the remaining time."""
LINE_SECONDS = 10.0
"""Interval between a trial's progress lines when there is no terminal."""


class ProgressDisplay:
    """Shows the progress of an agent's trials on `console`."""

    def __init__(self, console: Console, varied: tuple[str, ...], metric: str, expected: int | None) -> None:
        self._console = console
        self._varied = varied
        self._metric = metric
        self._of = f" of {expected}" if expected is not None else ""
        self._numbers: dict[str, int] = {}
        self._bars: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._totals: dict[str, int] = {}
        self._last_line: dict[str, float] = {}
        self._stages: dict[str, tuple[str, float]] = {}
        """The work before a trial's first step that a line has announced, and when it started."""
        self._latest: dict[str, dict[str, Any]] = {}
        self._bar_width = 24 if console.width >= WIDE else 10
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=self._bar_width),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Ignore a line of a trial's log, which would be confusing with several trials."""

    def started(self, run_id: str, name: str, config: Mapping[str, Any], device: str) -> None:
        """Show that a trial started; a resumed trial keeps its number."""
        title = f"trial {self._numbers.setdefault(run_id, len(self._numbers) + 1)}"
        self._names[run_id] = title
        self._latest[run_id] = {}
        chosen = "  ".join(f"{key}={number(lookup(config, key))}" for key in self._varied)
        self.say(f"{title}{self._of} on {device}: {chosen}   run {run_id} ({name})")
        self._bars[run_id] = self._progress.add_task(title, total=None, status="loading")

    def preparing(self, run_id: str, what: str, done: int, total: int) -> None:
        """Show the progress of work before a trial's first step."""
        self._progress.update(self._bars[run_id], total=total or None, completed=done, status=what)
        announced, started = self._stages.get(run_id, ("", 0.0))
        if not done and announced != what:
            self._stages[run_id] = what, time.monotonic()
            self.say(f"  {self._names[run_id]}: {what}")
        elif done == total and announced == what:
            del self._stages[run_id]
            self.say(f"  {self._names[run_id]}: {what}: done in {duration(time.monotonic() - started)}")
        else:
            self._say_periodically(run_id, progress_text(what, done, total))

    def planned(self, run_id: str, total_steps: int, done_steps: int) -> None:
        """Set a trial's number of steps."""
        self._totals[run_id] = total_steps
        self._progress.update(self._bars[run_id], total=total_steps, completed=done_steps, status="")
        if done_steps:
            self.say(f"  {self._names[run_id]}: resuming after step {done_steps}/{total_steps}")

    def progress(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """Show a trial's logged step."""
        self._latest[run_id].update(values)
        status, total = _status(self._latest[run_id]), self._totals.get(run_id, "?")
        self._say_periodically(run_id, f"step {step}/{total}  {'  '.join(status)}")
        # What does not fit is left out: it would push the count and the time off the terminal.
        others = len(f"{self._names[run_id]}  {total}/{total}  ") + self._bar_width + TIME_WIDTH
        while status and len("  ".join(status)) > self._console.width - others:
            status.pop()
        self._progress.update(self._bars[run_id], completed=step, status="  ".join(status))

    def _say_periodically(self, run_id: str, text: str) -> None:
        """Print a line every few seconds if there is no terminal for the bar."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line.setdefault(run_id, now) > LINE_SECONDS:
            self._last_line[run_id] = now
            self.say(f"  {self._names[run_id]}: {text}")

    def alert(self, run_id: str, alert: RunAlert) -> None:
        """Show a trial's alert on a line."""
        self.say(f"  {self._names[run_id]}: {alert}")

    def ended(self, run_id: str, how: str, summary: Mapping[str, Any]) -> None:
        """Show how a trial ended and its results; an alert has said why it is unstable."""
        values = self._latest[run_id] | dict(summary)
        shown = dict.fromkeys((self._metric, "rewards/margins", "trial/seconds"))
        results = "  ".join(f"{name} {number(values[name])}" for name in shown if name in values)
        health = f", {values['trial/health']}" if "trial/health" in values else ""
        self.say(f"  {self._forget(run_id)} {how}{health}   {results}".rstrip())

    def failed(self, run_id: str, cause: str, text: str) -> None:
        """Show that a trial failed and why."""
        self.say(f"  {self._forget(run_id)} FAILED ({cause}): {text}")

    def _forget(self, run_id: str) -> str:
        """Remove a trial that ended; returns its name."""
        self._progress.remove_task(self._bars.pop(run_id))
        del self._latest[run_id]
        self._stages.pop(run_id, None)
        return self._names.pop(run_id)


def _status(values: Mapping[str, float]) -> list[str]:
    shown = (("loss", "loss"), ("rewards/margins", "margin"), ("gpu/memory_peak_gb", "GB"))
    return [f"{label} {number(values[name])}" for name, label in shown if name in values]


class EndReport:
    """What a command that trains did, as one JSON object on standard output; without --json nothing."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self.fields: dict[str, Any] = {}

    @property
    def stream(self) -> IO[str]:
        """The stream for people: standard error if standard output is JSON."""
        return sys.stderr if self._as_json else sys.stdout

    def print(self, code: int) -> None:
        """Print the object, with the exit code of the command."""
        if self._as_json:
            print(json.dumps({**self.fields, "exit_code": code}, indent=2), flush=True)

    def exit_at_once(self, code: int) -> NoReturn:
        """Print the object and exit without libraries' exit handlers.

        wandb's would wait for an unreachable server.
        """
        self.print(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
