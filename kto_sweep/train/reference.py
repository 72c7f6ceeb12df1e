"""The base model's log-probs of each row's matched and mismatched completion, computed once per machine.

They are cached by row. The key has all that they depend on: the base weights, their precision, and the token
ids of the prompt with both completions. It has nothing of the trial or the other rows: all trials, agents and
sweeps share the cache, and one more row in the data is one more row to compute.
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
from kto_sweep.train.packed.pack import PairedRow
from kto_sweep.train.reference_store import Note, Pair, ReferenceStore

Scores = NDArray[np.float64]
Compute = Callable[[Sequence[PairedRow]], Scores]
"""(rows, 2) log-probs of matched and mismatched completions, nats."""
Progress = Callable[[int, int], None]
"""Gets rows done and rows in all."""

_FORMAT = "kto-sweep reference 2"
_FIRST_BLOCK = 1024
"""Tokens computed before the first write: takes seconds with a small model on a CPU."""
_BLOCK_SECONDS = 3.0
"""Duration of later blocks: an interruption loses one, and progress is reported after each."""
_WAIT_SECONDS = 0.5
"""Between two checks for rows that other processes compute."""


@dataclass(frozen=True)
class ReferenceModel:
    """The model whose log-probs they are."""

    fingerprint: str
    """Of the weights and configuration: see fingerprint_model."""
    quantization: str
    """none, 4bit or 8bit."""
    dtype: str
    """Of its computations: bfloat16, float32; with the trainer, where its values differ."""
    name: str = ""
    """For people: the values do not depend on it."""

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
    model: ReferenceModel,
    rows: Sequence[PairedRow],
    folder: Path,
    compute: Compute,
    progress: Progress | None = None,
    note: Note | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> Scores:
    """(rows, 2) log-probs by the base model, from the cache in `folder` or computed into it.

    Processes that need the same rows at the same time divide them and compute each once. Values from before
    an interruption are used. `progress` is called if some rows must be computed, and counts rows with the
    same tokens once; `note` gets a line about a damaged cache.

    Raises TrialFailure when the base model gives values that are not finite or the disk is full,
    KtoSweepError when the folder cannot be used.
    """
    keys = [row_key(row) for row in rows]
    if not keys:
        return np.zeros((0, 2))
    about = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "quantization": model.quantization,
        "dtype": model.dtype,
    }
    with ReferenceStore(folder, model.key, about, note or _ignore) as store:
        store.touch(clock())
        scores = store.get(dict.fromkeys(keys))
        # Indices, not rows: the tokens of a million rows stay where they are.
        missing = {key: at for at, key in enumerate(keys) if key not in scores}
        if missing:
            store.check()  # damage that lost these rows would lose them again
            scores |= _compute(store, missing, rows, compute, progress, len(scores), clock)
    return np.array([scores[key] for key in keys], dtype=np.float64)


def _ignore(_: str) -> None:
    pass


def _compute(
    store: ReferenceStore,
    wanted: Mapping[bytes, int],
    rows: Sequence[PairedRow],
    compute: Compute,
    progress: Progress | None,
    before: int,
    clock: Callable[[], float],
) -> dict[bytes, Pair]:
    """The log-probs of the `wanted` rows, by key and index in `rows`, computed here or by other processes.

    `before` rows were in the cache.
    """
    scores: dict[bytes, Pair] = {}
    missing = dict(wanted)
    tokens = _FIRST_BLOCK
    while missing:
        if progress is not None:
            progress(before + len(scores), before + len(wanted))
        with _claimed(store, missing, rows, tokens) as block:
            # The process that had these claims before may have stored the values since.
            fresh = store.get(block or missing)
            if absent := {key: rows[missing[key]] for key in block if key not in fresh}:
                began = clock()
                computed = _computed(absent, compute)
                store.put(computed)
                fresh |= computed
                tokens = _next_size(tokens, clock() - began)
        if not block and not fresh:
            time.sleep(_WAIT_SECONDS)
        scores |= fresh
        for key in fresh:
            del missing[key]
    if progress is not None:
        progress(before + len(scores), before + len(wanted))
    return scores


@contextmanager
def _claimed(
    store: ReferenceStore, wanted: Mapping[bytes, int], rows: Sequence[PairedRow], tokens: int
) -> Iterator[list[bytes]]:
    """Claim rows of at most `tokens` tokens, or one row, until the end of the block."""
    block: list[bytes] = []
    try:
        for key, at in wanted.items():
            size = rows[at].tokens()
            if block and size > tokens:
                break
            if store.claim(key):
                block.append(key)
                tokens -= size
        yield block
    finally:
        store.release(block)


def _computed(rows: Mapping[bytes, PairedRow], compute: Compute) -> dict[bytes, Pair]:
    scores = compute(list(rows.values()))
    if not np.isfinite(scores).all():
        raise TrialFailure(
            FailureCause.BAD_CONFIG,
            "the base model's log-probs are not finite",
            hint="check its weights, or try another quantization",
        )
    return {key: (float(a), float(b)) for key, (a, b) in zip(rows, scores, strict=True)}


def _next_size(tokens: int, seconds: float) -> int:
    """Tokens of the next block, after one of `tokens` took `seconds`."""
    if seconds < _BLOCK_SECONDS / 2:
        return tokens * 2
    return tokens if seconds < _BLOCK_SECONDS * 2 else max(1, tokens // 2)
