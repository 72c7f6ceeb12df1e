"""Hashes: those by which rows are equal, the same on every machine and for every model, and of numbers.

Prompts that differ only in white space are equal, so that they are on one side of the split. Ids of tool
calls are random and do not count; of a turn's other keys only those that change what the model reads do.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kto_sweep.data.rows import Example, Message

_COUNTED = ("name", "reasoning_content", "thinking", "reasoning")
"""Keys of a turn, beside role, content and calls, that chat templates render."""


def prompt_key(example: Example) -> int:
    """A hash that is equal for equal prompts, white space apart."""
    side = example.prompt
    content: object = (
        " ".join(side.split()) if isinstance(side, str) else [_turn(turn, squeeze=True) for turn in side]
    )
    return _hash([content, dict(example.arguments)] if example.arguments else [content])


def completion_key(example: Example) -> int:
    """A hash that is equal for equal completions."""
    side = example.completion
    return _hash(side if isinstance(side, str) else [_turn(turn) for turn in side])


def text_key(example: Example) -> int:
    """A hash of the completion without its tool calls; 0 when it has only calls."""
    text = completion_text(example.completion)
    return _hash(text) if text else 0


def completion_text(side: str | Sequence[Message]) -> str:
    """A completion's text without its tool calls."""
    return side if isinstance(side, str) else "\n".join(turn["content"] for turn in side).strip()


def _turn(turn: Message, *, squeeze: bool = False) -> list[object]:
    content = turn["content"]
    counted: list[object] = [turn["role"], " ".join(content.split()) if squeeze else content]
    if "tool_calls" in turn:
        counted.append([call["function"] for call in turn["tool_calls"]])
    return counted + [[key, turn[key]] for key in _COUNTED if key in turn]


def _hash(value: object) -> int:
    text = json.dumps(value, sort_keys=True, default=str)
    # 63 bits: a million rows collide with a chance of one in ten million, and numpy sorts int64.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def hash64(values: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """A 64-bit hash of each value, (n,): the finaliser of splitmix64 (doi 10.1145/2714064.2660195)."""
    z = np.atleast_1d(np.asarray(values)).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)
