"""Logs a trial's weights as W&B artifacts if WANDB_LOG_MODEL asks for it, as Hugging Face's trainers do."""

import os
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import wandb

from kto_sweep.errors import UsageError
from kto_sweep.json_file import parse_json
from kto_sweep.run_log import last_step

VARIABLE = "WANDB_LOG_MODEL"
CHECKPOINT = "checkpoint/last.safetensors"
"""Path of the checkpoint in a run's folder, as long as the trial can resume."""
_ROWS = "checkpoint/rows.jsonl"


class LogModel(StrEnum):
    """Which weights become artifacts; the values of WANDB_LOG_MODEL."""

    OFF = "false"
    END = "end"
    """The final ones."""
    CHECKPOINT = "checkpoint"
    """Each checkpoint and the final ones."""


def read_log_model(environ: Mapping[str, str] = os.environ) -> LogModel:
    """The value of WANDB_LOG_MODEL. Raises UsageError for one that Hugging Face's trainers do not know."""
    value = environ.get(VARIABLE, "").strip().lower()
    if value in {"true", "1"}:  # what `end` was called before
        return LogModel.END
    if value in {"", "0"}:
        return LogModel.OFF
    try:
        return LogModel(value)
    except ValueError:
        raise UsageError(
            f"{VARIABLE}={environ[VARIABLE]}: unknown value", hint=f"{VARIABLE}=end, checkpoint or false"
        ) from None


class ModelUpload:
    """The weights of one run as artifacts of it: a version for each checkpoint, one for the final weights."""

    def __init__(self, run: wandb.Run, folder: Path, what: LogModel, note: Callable[[str], None]) -> None:
        self._run = run
        self._folder = folder
        self._what = what
        self._note = note
        self._logged = self._written()  # an earlier attempt logged the one that the trial resumes from
        self._failing = False

    def checkpoint(self) -> None:
        """Log the last checkpoint, unless it has been logged.

        The worker replaces the file with a rename, so a copy of it is whole.
        """
        if self._what is not LogModel.CHECKPOINT or self._written() == self._logged or self._weights():
            return  # once there are final weights, the checkpoint has none
        self._logged = self._written()
        self._log(f"checkpoint-{self._run.id}", [CHECKPOINT, _ROWS], step=self._checkpoint_step())

    def final(self) -> None:
        """Log the final weights in the run's folder."""
        for weights in self._weights() if self._what is not LogModel.OFF else ():
            files = [str(path.relative_to(self._folder)) for path in weights.rglob("*") if path.is_file()]
            self._log(f"{weights.name}-{self._run.id}", files, step=last_step(self._folder))

    def _log(self, name: str, files: Sequence[str], *, step: int) -> None:
        try:
            artifact = wandb.Artifact(name, type="model", metadata={"step": step})
            for file in files:
                artifact.add_file(str(self._folder / file), name=file.partition("/")[2])
            self._run.log_artifact(artifact)
        except (OSError, ValueError, wandb.Error) as error:  # a trial must not end for want of disk space
            if not self._failing:
                self._note(f"WARNING: {name} is not logged as an artifact: {error}")
            self._failing = True
        else:
            self._failing = False

    def _checkpoint_step(self) -> int:
        """The step of the checkpoint: the log may be further."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._folder / CHECKPOINT, framework="np") as file:
                return int(parse_json(file.metadata()["about"])["step"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):  # of TRL's trainer, or damaged
            return last_step(self._folder)

    def _weights(self) -> list[Path]:
        return [self._folder / name for name in ("adapter", "model") if (self._folder / name).is_dir()]

    def _written(self) -> int:
        """When the checkpoint was written, in nanoseconds; 0 if there is none."""
        try:
            return (self._folder / CHECKPOINT).stat().st_mtime_ns
        except OSError:
            return 0
