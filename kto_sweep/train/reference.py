"""The base model's log-probs of each row's matched and mismatched completion, computed once per box.

They are kept by row, under what they depend on: the base weights, how they are held, and the token ids of the
prompt with both completions. Nothing of a trial or of the other rows is in it: every trial, agent and sweep
shares them, and a row more in the data is a row more to compute.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.train.pack import PairedRow
from kto_sweep.train.reference_store import Note, Pair, ReferenceStore

Scores = NDArray[np.float64]
Compute = Callable[[Sequence[PairedRow]], Scores]
"""(rows, 2) log-probs of matched and mismatched completions, nats."""
Progress = Callable[[int, int], None]
"""Told rows done and rows in all."""

_FORMAT = "kto-sweep reference 2"
_FIRST_BLOCK = 1024
"""Tokens computed before the first write: seconds for a small model on a CPU."""
_BLOCK_SECONDS = 3.0
"""What later blocks should take: what an interruption loses, and how often progress is told."""
_WAIT_SECONDS = 0.5
"""Between two looks for rows that other processes are computing."""


@dataclass(frozen=True)
class Base:
    """The model whose log-probs they are."""

    fingerprint: str
    """Of the weights and configuration: see fingerprint_model."""
    quantization: str
    """none, 4bit or 8bit."""
    dtype: str
    """What it computes in: bfloat16, float32; and by whom, if that makes a difference."""
    name: str = ""
    """What people call it: the values do not depend on it."""

    @property
    def key(self) -> str:
        """64 hex digits that change with what the values depend on."""
        identity = [_FORMAT, self.fingerprint, self.quantization, self.dtype]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def row_key(row: PairedRow) -> bytes:
    """A hash of the token ids of the prompt and of both completions."""
    digest = hashlib.sha256()
    for ids in (row.prompt, row.completion, row.mismatched):
        digest.update(np.int64(len(ids)).tobytes())
        digest.update(np.ascontiguousarray(ids, dtype=np.int64).tobytes())
    return digest.digest()


def reference_scores(
    base: Base,
    rows: Sequence[PairedRow],
    folder: Path,
    compute: Compute,
    progress: Progress | None = None,
    note: Note | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> Scores:
    """(rows, 2) log-probs by the base model, from the cache in `folder` or computed into it.

    Processes that want the same rows at the same time share them out and compute each once. What was computed
    before an interruption is used. `progress` hears of rows when some must be computed, counting rows of the
    same tokens once; `note` hears of a damaged cache.

    Raises TrialFailure when the base model gives values that are not finite or the disk is full,
    KtoSweepError when the folder cannot be used.
    """
    keys = [row_key(row) for row in rows]
    if not keys:
        return np.zeros((0, 2))
    about = {
        "model": base.name,
        "fingerprint": base.fingerprint,
        "quantization": base.quantization,
        "dtype": base.dtype,
    }
    with ReferenceStore(folder, base.key, about, note or _ignore) as store:
        store.touch(clock())
        found = store.get(dict.fromkeys(keys))
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        if missing:
            store.check()  # rows may be missing for damage that would lose them again
            found |= _compute(store, missing, compute, progress, len(found), clock)
    return np.array([found[key] for key in keys], dtype=np.float64)


def _ignore(_: str) -> None:
    pass


def _compute(
    store: ReferenceStore,
    rows: Mapping[bytes, PairedRow],
    compute: Compute,
    progress: Progress | None,
    before: int,
    clock: Callable[[], float],
) -> dict[bytes, Pair]:
    """The rows' log-probs, computed here or meanwhile by other processes; `before` were there already."""
    found: dict[bytes, Pair] = {}
    missing = dict(rows)
    tokens = _FIRST_BLOCK
    while missing:
        if progress is not None:
            progress(before + len(found), before + len(rows))
        with _claimed(store, missing, tokens) as block:
            # Whoever had a claim before us has left the values.
            fresh = store.get(block or missing)
            if wanted := {key: missing[key] for key in block if key not in fresh}:
                began = clock()
                scores = _computed(wanted, compute)
                store.put(scores)
                fresh |= scores
                tokens = _next_size(tokens, clock() - began)
        if not block and not fresh:
            time.sleep(_WAIT_SECONDS)
        found |= fresh
        for key in fresh:
            del missing[key]
    if progress is not None:
        progress(before + len(found), before + len(rows))
    return found


@contextmanager
def _claimed(store: ReferenceStore, rows: Mapping[bytes, PairedRow], tokens: int) -> Iterator[list[bytes]]:
    """Rows that no other process computes, of at most `tokens` tokens or one; others leave them to us."""
    block: list[bytes] = []
    try:
        for key, row in rows.items():
            if block and row.tokens() > tokens:
                break
            if store.claim(key):
                block.append(key)
                tokens -= row.tokens()
        yield block
    finally:
        store.release(block)


def _computed(rows: Mapping[bytes, PairedRow], compute: Compute) -> dict[bytes, Pair]:
    scores = compute(list(rows.values()))
    if not np.isfinite(scores).all():
        raise TrialFailure(
            FailureCause.BAD_CONFIG,
            "the base model's log-probs are not finite",
            hint="its weights are damaged, or its precision is too low: try another quantization",
        )
    return {key: (float(a), float(b)) for key, (a, b) in zip(rows, scores, strict=True)}


def _next_size(tokens: int, seconds: float) -> int:
    """Tokens of the next block, after one of `tokens` took so long."""
    if seconds < _BLOCK_SECONDS / 2:
        return tokens * 2
    return tokens if seconds < _BLOCK_SECONDS * 2 else max(1, tokens // 2)
