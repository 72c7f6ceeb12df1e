"""The data types of KTO rows: as text (Example) and as token ids (TokenRow)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One chat turn: `role`, `content` as text, and all other keys of the file, such as `tool_calls`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with one completion."""

    prompt: str | tuple[Message, ...]
    """All turns before the completion, or plain text."""
    completion: str | tuple[Message, ...]
    """The last assistant turn (one message), or plain text."""
    label: bool
    """True: desirable."""
    line: int
    """Line in the file, counted from 1."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template gets beside the turns: `tools`, `documents` and its own variables."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One example as token ids, after truncation to max_length."""

    prompt: list[int]
    """Token ids of the rendered prompt; never empty."""
    completion: list[int]
    """Token ids of the completion; never empty."""
    label: bool
    """True: desirable."""
    prompt_key: int
    """Equal for equal prompts."""
