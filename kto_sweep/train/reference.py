"""The base model's log-probs of every row's matched and mismatched completion, computed once per box.

An entry's name is a hash of what the values depend on: the base weights, how they are held, and the token ids
of each prompt with both completions. Nothing of a trial is in it, so every trial, agent and sweep shares it.

    <folder>/<key>.safetensors   scores, float64 (rows, 2), with their checksum
    <folder>/<key>.partial/      blocks of rows, while the entry is being computed
    <folder>/<key>.lock          held by the process that computes it
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.train.pack import PairedRow

Scores = NDArray[np.float64]
Compute = Callable[[Sequence[PairedRow]], Scores]
"""(rows, 2) log-probs of matched and mismatched completions, nats."""
Progress = Callable[[int, int], None]
"""Told rows done and rows in all."""

BLOCK_ROWS = 64
"""Rows computed between two writes: what an interruption loses at most."""

_FORMAT = "kto-sweep reference 1"


@dataclass(frozen=True)
class Base:
    """The model whose log-probs they are."""

    fingerprint: str
    """Of the weights and configuration: see fingerprint_model."""
    quantization: str
    """none, 4bit or 8bit."""
    dtype: str
    """What it computes in: bfloat16, float32."""


def reference_key(base: Base, rows: Sequence[PairedRow]) -> str:
    """The entry's name: 64 hex digits."""
    digest = hashlib.sha256(json.dumps([_FORMAT, asdict(base)]).encode())
    for row in rows:
        for ids in (row.prompt, row.completion, row.mismatched):
            digest.update(np.int64(len(ids)).tobytes())
            digest.update(np.ascontiguousarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


def reference_scores(
    base: Base, rows: Sequence[PairedRow], folder: Path, compute: Compute, progress: Progress | None = None
) -> Scores:
    """(rows, 2) log-probs by the base model, from the cache in `folder` or computed into it.

    Two processes that want the same entry compute it once. What was computed before an interruption is used.
    Raises TrialFailure when the base model gives values that are not finite.
    """
    if not rows:
        return np.zeros((0, 2))
    key = reference_key(base, rows)
    path = folder / f"{key}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    found = _read(path, len(rows))
    if found is not None:
        return found
    with _lock(folder / f"{key}.lock"):
        found = _read(path, len(rows))  # another process may have been faster
        if found is None:
            found = _compute(rows, folder / f"{key}.partial", compute, progress)
            _write(path, found, {"base": json.dumps(asdict(base)), "rows": str(len(rows))})
            shutil.rmtree(folder / f"{key}.partial")
    return found


def _compute(rows: Sequence[PairedRow], folder: Path, compute: Compute, progress: Progress | None) -> Scores:
    folder.mkdir(exist_ok=True)
    blocks = []
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        path = folder / f"{start:09d}.safetensors"
        scores = _read(path, len(block))
        if scores is None:
            scores = np.ascontiguousarray(compute(block), dtype=np.float64)
            if not np.isfinite(scores).all():
                raise TrialFailure(
                    FailureCause.BAD_CONFIG,
                    "the base model's log-probs are not finite",
                    hint="its weights are damaged, or its precision is too low: try another quantization",
                )
            _write(path, scores, {})
        blocks.append(scores)
        if progress is not None:
            progress(start + len(block), len(rows))
    return np.concatenate(blocks)


def _read(path: Path, rows: int) -> Scores | None:
    """The scores of a file, or None where it is missing, damaged or of another size."""
    try:
        with safe_open(path, framework="numpy") as file:
            scores: Scores = file.get_tensor("scores")
            checksum = (file.metadata() or {}).get("sha256")
    except (FileNotFoundError, SafetensorError):
        return None
    intact = checksum == hashlib.sha256(scores.tobytes()).hexdigest()
    return scores if intact and scores.shape == (rows, 2) else None


def _write(path: Path, scores: Scores, about: dict[str, str]) -> None:
    """Write so that no reader ever sees half a file."""
    metadata = about | {"format": _FORMAT, "sha256": hashlib.sha256(scores.tobytes()).hexdigest()}
    new = path.with_suffix(f".{os.getpid()}.new")
    with new.open("wb") as file:
        file.write(save({"scores": scores}, metadata))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` alone; the system lets go when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        # Only once the entry is there: whoever still waits for this file finds the entry and needs no lock.
        path.unlink(missing_ok=True)
