"""A trial's place in its training, in one file: enough to go on in another process with the same numbers.

A safetensors file holds adapters and AdamW's moments; its header says, as JSON, how far the trial is and what
the numbers belong to. Files are replaced as a whole, so that a crash at any moment leaves the old or the new.
A checksum finds what a disk has changed since, which would otherwise be trained on.
"""

import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kto_sweep.errors import KtoSweepError
from kto_sweep.train.packed.pack import PairedRow
from kto_sweep.train.packed.slot import SlotState

_FORMAT = "kto-sweep checkpoint 2"


class CheckpointError(KtoSweepError):
    """A checkpoint that cannot be used; the message says why."""


@dataclass(frozen=True)
class Identity:
    """What a trial's numbers depend on: a checkpoint of another identity is another trial's."""

    config: Mapping[str, Any]
    """Every parameter of the trial, as plain JSON."""
    rows: str
    """Hash of the rows: see fingerprint_rows."""
    base: str
    """Hash of the base model: see fingerprint_model."""

    def difference(self, other: "Identity") -> str:
        """How `other` differs, in a few words; empty when it does not."""
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
    """Without tensors when the trial is finished: it needs them no more."""
    seconds: float
    """That the trial has taken so far."""
    best: float | None
    """Lowest eval/common_loss so far, that of the adapters kept as the best."""
    finished: bool = False
    """All steps are done and the adapters saved."""


def fingerprint_rows(*parts: Sequence[PairedRow]) -> str:
    """64 hex digits that change with any token, label, partner or order of any part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.int64(len(part)).tobytes())
        for row in part:
            for ids in (row.prompt, row.completion, row.mismatched):
                digest.update(np.int64(len(ids)).tobytes() + ids.tobytes())
            digest.update(bytes([row.desirable]))
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` in place of what was there. Raises OSError when the disk is full."""
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
    told = json.dumps(about)
    checksum = _checksum(told, state.tensors)
    write_tensors(path, state.tensors, {"format": _FORMAT, "about": told, "checksum": checksum})


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of it all, in hexadecimal digits: memory and disks are the enemy here, not people."""
    found = zlib.crc32(about.encode())
    for name, tensor in sorted(tensors.items()):
        host = tensor.detach().cpu().contiguous()
        found = zlib.crc32(f"{name} {host.dtype} {tuple(host.shape)}".encode(), found)
        found = zlib.crc32(host.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def load_checkpoint(path: Path, identity: Identity) -> Checkpoint | None:
    """The checkpoint in `path`, its tensors on the host; None when there is none.

    Raises CheckpointError when it is damaged or not of `identity`.
    """
    found = _load(path)
    difference = identity.difference(found.identity) if found is not None else ""
    if difference:
        raise CheckpointError(f"it has {difference}")
    return found


def _load(path: Path) -> Checkpoint | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"it is not in the format {_FORMAT!r}")
            about = json.loads(metadata["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        if metadata["checksum"] != _checksum(metadata["about"], tensors):
            raise CheckpointError("it is damaged: its checksum is another")
        return Checkpoint(
            identity=Identity(**about["identity"]),
            state=SlotState(about["step"], about["examples"], tensors, about["updates"]),
            seconds=about["seconds"],
            best=about["best"],
            finished=about["finished"],
        )
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"it is damaged: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in place of what was there; a crash at any moment leaves the old or the new.

    Raises OSError when the disk is full.
    """
    new = path.with_name(f"{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it meanwhile
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, dict(metadata))
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))  # what the system said, wrapped
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        new.unlink(missing_ok=True)
