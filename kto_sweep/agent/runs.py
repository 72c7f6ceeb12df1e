"""A trial's W&B run: opened, fed and closed by the supervisor, next to the trial's own files."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import wandb

from kto_sweep.errors import FailureCause
from kto_sweep.run_log import RunLog
from kto_sweep.run_record import Claim, RunRecord
from kto_sweep.sweep_ref import SweepRef

LOCAL_TRANSMIT_SECONDS = 2
"""How often a run sends what it logged to the embedded server; W&B itself gets wandb's default of 15 s."""


CHECKPOINT = "checkpoint/last.safetensors"
"""In a run's folder, while its trial can go on from there."""


class Objective:
    """Best and last value of the sweep's metric over one trial."""

    def __init__(self, metric: str, goal: str) -> None:
        self._metric = metric
        self._better = max if goal == "maximize" else min
        self._best: float | None = None
        self._last: float | None = None

    def see(self, values: Mapping[str, float]) -> None:
        """Take note of the metric if it is among `values`; a value that is not finite is never the best."""
        value = values.get(self._metric)
        if value is None:
            return
        self._last = value
        if math.isfinite(value):
            self._best = value if self._best is None else self._better(self._best, value)

    def summary(self) -> dict[str, float]:
        """`objective/best` and `objective/last`, where there is a value."""
        found = {"objective/best": self._best, "objective/last": self._last}
        return {name: value for name, value in found.items() if value is not None}


class TrialRun:
    """One open W&B run and its folder; a Report."""

    def __init__(
        self,
        run: wandb.Run,
        folder: Path,
        record: RunRecord,
        claim: Claim,
        objective: Objective,
        logged_steps: int = 0,
    ) -> None:
        self._run = run
        self._folder = folder
        self._record = record
        self._claim = claim
        self._objective = objective
        self._files = RunLog(folder, keep=logged_steps, echo=run.write_logs)
        self.logged_steps = logged_steps
        """The last step whose metrics the run has."""
        self._names: set[str] = set()
        """What was logged at that step already."""

    @classmethod
    def open(
        cls,
        ref: SweepRef,
        run_id: str,
        config: Mapping[str, Any],
        folder: Path,
        *,
        objective: Objective,
        local: bool,
        on_stop: Callable[[], None],
    ) -> "TrialRun":
        """Begin the run of one trial of a sweep, or go on with it where the folder has its checkpoint.

        `on_stop` is called when the server asks for the run's end.
        """
        goes_on = (folder / CHECKPOINT).exists()
        folder.mkdir(parents=True, exist_ok=True)
        claim = Claim(folder)
        (folder / "trial.json").write_text(json.dumps(config, indent=2) + "\n")
        record = RunRecord(ref.entity, ref.project, ref.id, local, os.environ.get("WANDB_BASE_URL", ""))
        record.write(folder)
        settings = wandb.Settings(
            sweep_id=ref.id,
            stop_fn=on_stop,
            console="off",  # the process serves several runs: each gets its own lines through write_logs
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_meta=False,
        )
        if local:
            settings.x_file_stream_transmit_interval = LOCAL_TRANSMIT_SECONDS
        run = wandb.init(
            entity=ref.entity,
            project=ref.project,
            id=run_id,
            config=dict(config),
            dir=str(folder),
            reinit="create_new",
            resume="allow" if goes_on else None,
            settings=settings,
        )
        for name in ("failure/cause", "failure/message"):  # of an earlier attempt
            if run.resumed and run.summary.get(name) is not None:
                del run.summary[name]
        # What the server has counts: it may miss the last seconds of an agent that was killed.
        logged_steps = run.starting_step - 1 if run.resumed else 0
        return cls(run, folder, record, claim, objective, logged_steps)

    @property
    def name(self) -> str:
        """The run's name for people."""
        return self._run.name or self._run.id

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Take note of the number of optimizer steps, and of those that an earlier attempt has logged."""
        self._files.plan(total_steps, done_steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log to the run and to the files."""
        if step < self.logged_steps:
            return  # an earlier attempt has logged it, with the same values
        if step > self.logged_steps:
            self.logged_steps, self._names = step, set()
        fresh = {name: value for name, value in values.items() if name not in self._names}
        if fresh:
            self._names.update(fresh)
            self._objective.see(fresh)
            self._run.log(fresh, step=step)
            self._files.metrics(step, fresh)

    def note(self, text: str) -> None:
        """Write one line to the run's console log and to the files."""
        self._files.note(text)

    def alert(self, title: str, text: str) -> None:
        """Send a W&B alert."""
        self._run.alert(title, text)

    def succeed(self, summary: Mapping[str, float | int | str]) -> None:
        """End the run as finished."""
        self._run.summary.update(dict(summary))
        self._close(exit_code=0)

    def stop(self, summary: Mapping[str, float | int | str]) -> None:
        """End the run that the server asked to stop; it shows as killed, with what it measured."""
        self._run.summary.update(dict(summary))
        self._close(exit_code=1)

    def fail(self, cause: FailureCause | str, message: str) -> None:
        """End the run as failed, with its cause in the summary."""
        self.note(f"FAILED ({cause}): {message}")
        self._run.summary.update({"failure/cause": str(cause), "failure/message": message})
        self._close(exit_code=1)

    def preempt(self) -> None:
        """End the run so that the server hands its trial out again."""
        self._run.mark_preempting()
        self._close(exit_code=1)

    def _close(self, exit_code: int) -> None:
        self._run.summary.update(self._objective.summary())
        with contextlib.suppress(OSError):  # a full disk must not keep the run from ending
            replace(self._record, ended=True).write(self._folder)
        self._run.finish(exit_code=exit_code)
        self._files.close()
        self._claim.drop()
