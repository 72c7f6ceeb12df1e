"""The data types of KTO rows: as text (Example) and as token ids (TokenRow)."""

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""One chat turn: `role`, `content` and optionally `tool_calls`."""


@dataclass(frozen=True)
class Example:
    """One row of a data file."""

    prompt: str | tuple[Message, ...]
    """All turns before the completion, or plain text."""
    completion: str | tuple[Message, ...]
    """The last assistant turn (one message), or plain text."""
    label: bool
    """True: desirable."""
    line: int
    """Line in the file, counted from 1."""


@dataclass(frozen=True)
class TokenRow:
    """One row as token ids, after truncation to max_length."""

    prompt: list[int]
    """Token ids of the rendered prompt; never empty."""
    completion: list[int]
    """Token ids of the completion; never empty."""
    label: bool
    """True: desirable."""
    group: int
    """Rows with the same prompt have the same group."""
