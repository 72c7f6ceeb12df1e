"""A trial's state in one file: enough to continue in another process with the same numbers.

A safetensors file has the adapters and AdamW's moments; its header has, as JSON, the step and what the
numbers belong to. Files are replaced atomically: a crash leaves the old one or the new one. A checksum
detects damage by the disk, which training would otherwise continue from.
"""

import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kto_sweep.errors import KtoSweepError
from kto_sweep.json_file import parse_json
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.slot import SlotState

_FORMAT = "kto-sweep checkpoint 2"


class CheckpointError(KtoSweepError):
    """A checkpoint that cannot be used; the message says why."""


@dataclass(frozen=True)
class Identity:
    """What a trial's numbers depend on. A checkpoint with another identity is not used."""

    config: Mapping[str, Any]
    """Every parameter of the trial, as plain JSON."""
    rows: str
    """Hash of the rows: see fingerprint_rows."""
    base: str
    """Hash of the base model: see fingerprint_model."""

    def difference(self, other: "Identity") -> str:
        """How `other` differs, for people; empty when it does not."""
        names = [
            name
            for name in {**self.config, **other.config}
            if self.config.get(name) != other.config.get(name)
        ]
        if names:
            return ", ".join(
                f"{name} {other.config.get(name)} (now {self.config.get(name)})" for name in names
            )
        if self.rows != other.rows:
            return "other rows"
        return "" if self.base == other.base else "other base weights"


@dataclass(frozen=True)
class Checkpoint:
    """A trial after some of its steps."""

    identity: Identity
    state: SlotState
    """Without tensors for a finished trial."""
    seconds: float
    """Seconds of training so far."""
    best: float | None
    """Lowest eval/common_loss so far: that of the adapters in `best`."""
    finished: bool = False
    """Whether all steps are done and the weights are saved."""


def fingerprint_rows(*parts: PairedRows) -> str:
    """64 hex digits that change with any token, label, partner or order of any part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        part.update(digest)
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path`. Raises OSError, for example on a full disk."""
    state = checkpoint.state
    about = {
        "identity": asdict(checkpoint.identity),
        "step": state.step,
        "examples": state.examples,
        "updates": state.updates,
        "seconds": checkpoint.seconds,
        "best": checkpoint.best,
        "finished": checkpoint.finished,
    }
    text = json.dumps(about)
    # Over the text too: a flipped bit in `step` would shift the order of rows and the schedule.
    checksum = _checksum(text, state.tensors)
    write_tensors(path, state.tensors, {"format": _FORMAT, "about": text, "checksum": checksum})


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of text and tensors, 8 hex digits: it detects accidents, not attacks."""
    checksum = zlib.crc32(about.encode())
    # Sorted: tensors are not read back in the order in which they were written.
    for name, tensor in sorted(tensors.items()):
        host = tensor.detach().cpu().contiguous()
        checksum = zlib.crc32(f"{name} {host.dtype} {tuple(host.shape)}".encode(), checksum)
        # As bytes: numpy has no bfloat16.
        checksum = zlib.crc32(host.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def load_checkpoint(path: Path, identity: Identity) -> Checkpoint | None:
    """The checkpoint at `path`, with tensors on the host; None without one.

    Raises CheckpointError when it is damaged or has another identity.
    """
    checkpoint = _load(path)
    difference = identity.difference(checkpoint.identity) if checkpoint is not None else ""
    if difference:
        raise CheckpointError(f"it has {difference}")
    return checkpoint


def _load(path: Path) -> Checkpoint | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"it is not in the format {_FORMAT!r}")
            about = parse_json(metadata["about"])
            # Read as a whole: a memory map would fail later, in training, where the file is damaged.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        if metadata["checksum"] != _checksum(metadata["about"], tensors):
            raise CheckpointError("it is damaged: its checksum does not match")
        return Checkpoint(
            identity=Identity(**about["identity"]),
            state=SlotState(about["step"], about["examples"], tensors, about["updates"]),
            seconds=about["seconds"],
            best=about["best"],
            finished=about["finished"],
        )
    except FileNotFoundError:
        return None
    # A damaged header can still be JSON, of any shape.
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"it is damaged: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace the safetensors file at `path`; a crash leaves the old one or the new one.

    Raises OSError, for example on a full disk.
    """
    new = path.with_name(f"{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)  # a user may have removed it
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, dict(metadata))
        with new.open("rb") as file:
            # Before the rename: after a power cut some file systems have the new name with empty contents.
            os.fsync(file.fileno())
        new.replace(path)
    except SafetensorError as error:
        # It wraps the system's error: callers need the number, to tell a full disk from a broken one.
        match = re.search(r"os error (\d+)", str(error))
        number = int(match[1]) if match else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        new.unlink(missing_ok=True)


INTERVAL = 60.0
"""Seconds of training that a crash may lose."""

COST_FACTOR = 50.0
"""A checkpoint waits this many times as long as the last one took: writing takes at most 2 % of the time."""

Clock = Callable[[], float]


class CheckpointPolicy:
    """Decides when to write one trial's checkpoints to `path`, and writes them."""

    def __init__(self, path: Path, note: Callable[[str], None], clock: Clock) -> None:
        self._path = path
        self._note = note
        self._clock = clock
        self._last = clock()
        self._cost = 0.0
        """Seconds that the last one took."""
        self._failing = False

    def is_due(self, *, after_evaluation: bool) -> bool:
        """Whether to write one now; earlier after an evaluation, which takes long to repeat."""
        interval = 0.0 if after_evaluation else INTERVAL
        return self._clock() - self._last >= max(interval, COST_FACTOR * self._cost)

    def write(self, checkpoint: Checkpoint, sync_rows: Callable[[], None]) -> None:
        """Write one. On an OSError the trial continues with a warning: a full disk may have space later."""
        began = self._clock()
        try:
            sync_rows()  # first: a checkpoint without its rows is not usable
            save_checkpoint(self._path, checkpoint)
        except OSError as error:
            if not self._failing:  # once per failure, not once per attempt
                self._note(f"WARNING: step {checkpoint.state.step}: no checkpoint written: {error.strerror}")
            self._failing = True
        else:
            self._failing = False
            self._note(f"step {checkpoint.state.step}: checkpoint written")
        # Also after a failure: a full disk is tried again at the same interval, not at every step.
        self._last = self._clock()
        self._cost = self._last - began
