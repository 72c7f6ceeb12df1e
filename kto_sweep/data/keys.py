"""Hashes by which rows are equal: 63-bit numbers, the same on every machine and for every model.

Prompts that differ only in white space are equal, so that they are on one side of the split. Ids of tool
calls are random and do not count; of a turn's other keys only those that change what the model reads do.
"""

import hashlib
import json
from collections.abc import Sequence

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
