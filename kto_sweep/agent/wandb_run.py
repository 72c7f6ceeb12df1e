"""A trial's W&B run, which the agent opens, logs to and closes, next to the trial's own files."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import wandb

from kto_sweep.agent.alert_log import AlertLog
from kto_sweep.agent.model_upload import CHECKPOINT, LogModel, ModelUpload
from kto_sweep.alerts import AlertLevel, AlertRule, RuleChecker, RunAlert, rules_of
from kto_sweep.errors import FailureCause, KtoSweepError
from kto_sweep.json_file import write_atomic
from kto_sweep.locks import RunLock
from kto_sweep.provenance import CodeInfo, Provenance
from kto_sweep.run_log import RunLog, last_step
from kto_sweep.run_record import RunRecord, read_record
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import BUSY, DEVICE, OWNER
from kto_sweep.trial import RECORD, with_defaults
from kto_sweep.wandb_client.private_api import is_service_gone

LOCAL_TRANSMIT_SECONDS = 2
"""A run's upload interval to the embedded server; for W&B, wandb's default of 15 s applies."""
BUSY_SECONDS = 5.0
"""Minimum interval between updates of the time that a run has held its device."""
NO_GPU = -1
"""A GPU index of wandb's system monitor that does not exist; without any index it monitors all GPUs."""
ENDINGS = ("failure/cause", "failure/message", "trial/health", "trial/health_message")
"""What a run's summary says about how an attempt ended."""


class GivenBackError(KtoSweepError):
    """A run could not be started, and its trial was returned to the server."""


class ObjectiveTracker:
    """Tracks the best and last value of the sweep's metric in one trial."""

    def __init__(self, metric: str, goal: str) -> None:
        self._metric = metric
        self._better = max if goal == "maximize" else min
        self._best: float | None = None
        self._last: float | None = None

    def update(self, values: Mapping[str, float]) -> None:
        """Update from `values` if they include the metric; a value that is not finite is never the best."""
        value = values.get(self._metric)
        if value is None:
            return
        self._last = value
        if math.isfinite(value):
            self._best = value if self._best is None else self._better(self._best, value)

    def summary(self) -> dict[str, float]:
        """`objective/best` and `objective/last`, if there is a value."""
        summary = {"objective/best": self._best, "objective/last": self._last}
        return {name: value for name, value in summary.items() if value is not None}


@dataclass(frozen=True)
class RunOptions:
    """Options shared by all W&B runs of an agent."""

    metric: str
    goal: str
    """minimize or maximize."""
    local: bool
    """On the embedded server of this box."""
    patience: float
    """Seconds for which closing a run may wait for the server."""
    alerts: Sequence[AlertRule] = ()
    provenance: Provenance = field(default_factory=Provenance)
    """Of the agent's process."""
    log_model: LogModel = LogModel.OFF


@dataclass(frozen=True)
class Monitored:
    """What wandb's system monitor watches during a run."""

    pid: int
    """The worker process."""
    gpus: Sequence[int]
    """Indices of its GPUs in nvidia-smi; empty on a CPU."""
    several_processes: bool = False
    """The worker starts one process for each device."""


class TrialRun:
    """One open W&B run and its folder; implements Report."""

    def __init__(
        self,
        run: wandb.Run,
        folder: Path,
        record: RunRecord,
        claim: RunLock,
        objective: ObjectiveTracker,
        rules: RuleChecker,
        on_alert: Callable[[RunAlert], None],
        keep: int = 0,
        superseded: Sequence[Path] = (),
        earlier: Sequence[object] = (),
        log_model: LogModel = LogModel.OFF,
    ) -> None:
        """`earlier`: the entries of earlier attempts under BUSY in the run's summary."""
        self._run = run
        self._folder = folder
        self._record = record
        self._claim = claim
        self._objective = objective
        self._rules = rules
        self._on_alert = on_alert
        self._alerts = AlertLog(run, folder, keep)
        self._superseded = superseded
        """W&B files of earlier attempts whose data this attempt's file repeats."""
        self._files = RunLog(folder, keep=keep, echo=run.write_logs)
        for step, row in self._files.kept.items():
            objective.update(row)
            rules.check(step, row)  # an earlier attempt sent these alerts
        self._sent_steps = keep
        """The run already has the metrics up to this step, from an earlier attempt."""
        self.logged_steps = max(self._files.kept, default=0)
        """The last step with metrics in the run and the files; after a power cut, some may be missing."""
        self._warned = False
        self._config = (folder / "trial.json").read_text(encoding="utf-8")
        self._upload = ModelUpload(run, folder, log_model, self.note)
        self._names: set[str] = set()
        """Metrics already logged at that step."""
        self._earlier = earlier
        # Elapsed time is monotonic: a clock that is set back must not shrink it.
        self._opened_at, self._opened_tick = time.time(), time.monotonic()
        self._busy_tick = self._opened_tick
        self._update_busy()

    @classmethod
    def open(
        cls,
        ref: SweepRef,
        run_id: str,
        config: Mapping[str, Any],
        folder: Path,
        *,
        objective: ObjectiveTracker,
        alerts: Sequence[AlertRule] = (),
        local: bool,
        on_stop: Callable[[], None],
        on_alert: Callable[[RunAlert], None],
        home: str,
        agent: str,
        device: str,
        patience: float,
        adopt: bool = False,
        earlier: Sequence[object] = (),
        provenance: Provenance | None = None,
        monitored: Monitored | None = None,
        log_model: LogModel = LogModel.OFF,
    ) -> "TrialRun":
        """Start the run of one trial, or resume it if the folder has its checkpoint.

        `ref` has no id if the trial belongs to no sweep.
        `on_stop` is called when the server asks to stop the run, `on_alert` with each alert. `patience`:
        seconds that closing the run may wait for the server. With `adopt`, the run must exist on the server.
        `earlier`: the entries of earlier attempts under BUSY in its summary, which a run that starts over
        would lose. Without `monitored`, system metrics are those of this process.
        Raises wandb.Error when the server cannot be reached or has no such run, GivenBackError when the run
        was open and something else failed.
        """
        resumes = (folder / CHECKPOINT).exists()
        attempts = [path for path in (folder / "wandb").glob("*run-*") if not path.is_symlink()]
        resume: Literal["must", "allow"] | None
        resume = "must" if adopt else "allow" if resumes and not _is_offline() else None
        folder.mkdir(parents=True, exist_ok=True)
        claim = RunLock(folder)
        run: wandb.Run | None = None
        try:
            write_atomic(folder / "trial.json", json.dumps(config, indent=2) + "\n")
            before = read_record(folder)
            record = RunRecord(
                ref.entity, ref.project, ref.id, local,
                "" if _is_offline() else os.environ.get("WANDB_BASE_URL", ""),
                agent=agent, device=device, attempt=before.attempt + 1 if before else 1, home=home,
            )  # fmt: skip
            record.write(folder)
            provenance = provenance or Provenance()
            settings = wandb.Settings(
                sweep_id=ref.id or None,
                stop_fn=on_stop,
                console="off",  # this process serves several runs: each gets its own lines from write_logs
                silent=True,
                x_disable_meta=False,
                finish_timeout=patience,
                finish_timeout_raises=True,
                **_code_settings(provenance.code),
                **({} if monitored is None else _monitor_settings(monitored)),
            )
            if local:
                settings.x_file_stream_transmit_interval = LOCAL_TRANSMIT_SECONDS
            run = wandb.init(
                entity=ref.entity or None,
                project=ref.project,
                id=run_id,
                config={**with_defaults(config), OWNER: home, DEVICE: device},
                dir=str(folder),
                reinit="create_new",
                resume=resume,
                settings=settings,
            )
            # What an earlier attempt loaded stays until this one has loaded it.
            set_record(run, {**(run.config.get(RECORD) or {}), **provenance.to_json()})
            for name in ENDINGS:  # left by an earlier attempt
                if run.resumed and run.summary.get(name) is not None:
                    del run.summary[name]
            rules = RuleChecker((*alerts, *rules_of(config)))
            if run.resumed:  # the server's rows decide: a killed agent's last seconds may not have arrived
                return cls(
                    run, folder, record, claim, objective, rules, on_alert, run.starting_step - 1,
                    earlier=earlier,
                )  # fmt: skip
            keep = checkpoint_step(folder)
            opened = cls(
                run, folder, record, claim, objective, rules, on_alert, keep, attempts, earlier, log_model
            )
            opened._log_kept_rows()
            return opened
        except BaseException as error:
            if run is not None:
                _give_back(run)
            claim.release()
            if run is None or is_service_gone(error):
                raise
            raise GivenBackError(str(error)) from error

    @property
    def name(self) -> str:
        """The run's display name."""
        return self._run.name or self._run.id

    def _log_kept_rows(self) -> None:
        """Log the rows of earlier attempts, which are in the files, to a run that does not have them.

        `wandb sync` reads the file of one attempt only, stops at a truncated one, and logs rows twice if two
        files have them. So the file of each offline attempt contains the whole run.
        """
        for step, row in self._files.kept.items():
            timestamp = datetime.fromisoformat(row["timestamp"]).timestamp()
            values = {name: value for name, value in row.items() if name != "timestamp"}
            self._run.log({**values, "_timestamp": timestamp}, step=step)
        self._files.echo_earlier()

    def loaded(self, provenance: Mapping[str, Any]) -> None:
        """Put a trial's provenance, as JSON, into the run's configuration."""
        set_record(self._run, provenance)

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        """Set the number of optimizer steps, and of those logged by an earlier attempt."""
        self._run.summary["trial/steps"] = total_steps
        self._files.plan(total_steps, done_steps)

    def _update_busy(self) -> None:
        """Extend the time that the run has held its device."""
        self._busy_tick = time.monotonic()
        end = self._opened_at + self._busy_tick - self._opened_tick
        span = [f"{self._record.home} {self._record.device}", self._opened_at, end]
        self._run.summary[BUSY] = [*self._earlier, span]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log to the run and to the files."""
        if time.monotonic() - self._busy_tick >= BUSY_SECONDS:
            self._update_busy()
        if step < self.logged_steps:
            return  # logged by an earlier attempt, with the same values
        if step > self.logged_steps:
            self.logged_steps, self._names = step, set()
        fresh = {name: value for name, value in values.items() if name not in self._names}
        if fresh:
            self._names.update(fresh)
            self._objective.update(fresh)
            if step > self._sent_steps:
                self._run.log(fresh, step=step)
            self._files.metrics(step, fresh)
            self._upload.checkpoint()
            for alert in self._rules.check(step, fresh):
                self.alert(alert)

    def take_warning(self) -> str:
        """What to say of the trial's folder, once; else empty."""
        if self._warned or not self._files.warning:
            return ""
        self._warned = True
        with contextlib.suppress(OSError):
            self._record.write(self._folder)
            write_atomic(self._folder / "trial.json", self._config)
        return self._files.warning

    def note(self, text: str) -> None:
        """Write one line to the run's console log and to the files."""
        self._files.note(text)

    def alert(self, alert: RunAlert) -> None:
        """Send an alert, write it to the console log, and pass it to `on_alert`."""
        self._alerts.send(alert)
        self.note(str(alert))
        self._on_alert(alert)

    def succeed(self, summary: Mapping[str, float | int | str]) -> bool:
        """End the run as finished; returns, like the other ends, whether its data is where it belongs."""
        self._run.summary.update(dict(summary))
        self._upload.final()
        return self._close(exit_code=0)

    def stop(self, summary: Mapping[str, float | int | str], *, for_good: bool = True) -> bool:
        """End the run as killed or paused on request of the server.

        With `for_good` it will not resume, so its checkpoint (three times the adapters' size) is removed.
        """
        self._run.summary.update(dict(summary))
        sent = self._close(exit_code=1)
        if sent and for_good:
            remove_checkpoint(self._folder)
        return sent

    def fail(self, cause: FailureCause | str, message: str) -> bool:
        """End the run as failed, with its cause in the summary and an alert, unless one has said so."""
        self.note(f"FAILED ({cause}): {message}")
        if not self._alerts.has_error:
            self._alerts.send(RunAlert(AlertLevel.ERROR, f"failed: {cause}", message, self.logged_steps))
        self._run.summary.update({"failure/cause": str(cause), "failure/message": message})
        return self._close(exit_code=1)

    def preempt(self) -> bool:
        """End the run so that the server hands out its trial again."""
        self._run.summary.update({"failure/cause": str(FailureCause.PREEMPTED)})
        self._run.mark_preempting()
        return self._close(exit_code=1)

    def _close(self, exit_code: int) -> bool:
        try:
            self._update_busy()
            self._run.summary.update(self._objective.summary())
            self._keep(replace(self._record, ended=True))
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            return False
        except Exception as error:
            with contextlib.suppress(Exception):  # the note also goes through wandb
                self.note(f"could not send the end of the run: {error}")
            raise
        else:
            self._keep(replace(self._record, ended=True, sent=not self._record.is_offline))
            for folder in self._superseded:
                shutil.rmtree(folder, ignore_errors=True)
            return True
        finally:
            self.release_folder()

    def release_folder(self) -> None:
        """Release its folder; idempotent."""
        self._files.close()
        self._claim.release()

    def _keep(self, record: RunRecord) -> None:
        with contextlib.suppress(OSError):  # a full disk must not prevent the run's end
            record.write(self._folder)


def _give_back(run: wandb.Run) -> None:
    """End a run that could not be started, so that the server hands out its trial again.

    Otherwise wandb would mark it as finished when this process exits.
    """
    with contextlib.suppress(Exception):  # the first error is reported
        run.mark_preempting()
        run.finish(exit_code=1)


def checkpoint_step(folder: Path) -> int:
    """The step that a trial resumes after; 0 without a checkpoint."""
    return last_step(folder) if (folder / CHECKPOINT).exists() else 0


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a trial that will not resume."""
    shutil.rmtree((folder / CHECKPOINT).parent, ignore_errors=True)


def log_answers(ref: SweepRef, run_id: str, folder: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Add a table `samples` with prompts, base and tuned answers to an ended run.

    Offline, it is a separate file, which `wandb sync` sends after the run's own.
    """
    run = wandb.init(
        entity=ref.entity or None,
        project=ref.project,
        id=run_id,
        dir=str(folder),
        resume="allow" if _is_offline() else "must",
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, **_code_settings(None)),
    )
    run.log({"samples": wandb.Table(columns=["prompt", "base", "tuned"], data=[list(row) for row in rows])})
    run.finish()


def set_record(run: wandb.Run, record: Mapping[str, Any]) -> None:
    """Replace the run's record, a trial's Provenance as JSON."""
    for value in (None, dict(record)):  # wandb merges groups: a key that the new one lacks would stay
        run.config.update({RECORD: value}, allow_val_change=True)


def _code_settings(code: CodeInfo | None) -> dict[str, Any]:
    """Settings that show the commit on the run's page, and upload code and diff only on request.

    wandb saves both if `save_code` is set, which the settings of a W&B account do too.
    """
    asked = wandb.env.should_save_code()
    settings: dict[str, Any] = {"save_code": asked, "disable_code": not asked}
    if code is None:
        return settings | {"disable_git": True}
    # wandb would search the run's folder, which is in no repository.
    own = {"git_root": str(Path.cwd()), "git_commit": code.commit, "git_remote_url": code.remote}
    return settings | own | {"disable_git": not asked}


def _monitor_settings(monitored: Monitored) -> dict[str, Any]:
    return {
        "x_stats_pid": monitored.pid,
        "x_stats_gpu_device_ids": list(monitored.gpus) or [NO_GPU],
        "x_stats_track_process_tree": monitored.several_processes,
    }


def _is_offline() -> bool:
    """Whether wandb writes local files only."""
    return os.environ.get("WANDB_MODE") == "offline"
