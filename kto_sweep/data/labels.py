"""Labels of rows: which values mean desirable, and what a column without a known name may be."""

from collections.abc import Mapping
from typing import Any

from kto_sweep.data.messages import BadRowError

LABELS = ("label", "kto_tag")
"""Columns with the label; the first with a value counts."""

DESIRABLE = frozenset(
    {
        *("true", "1", "1.0", "+1", "yes", "y", "t", "good", "desirable", "chosen", "positive", "accepted"),
        *("accept", "correct"),
        *("up", "thumbs_up", "thumbs-up", "thumbs up", "thumbsup", "like", "liked", "upvote", "👍"),
    }
)
UNDESIRABLE = frozenset(
    {
        *("false", "0", "0.0", "-1", "-1.0", "no", "n", "f", "bad", "undesirable", "rejected", "negative"),
        *("declined", "reject", "incorrect", "dislike", "disliked", "downvote", "👎"),
        *("down", "thumbs_down", "thumbs-down", "thumbs down", "thumbsdown"),
    }
)

_LABEL_WORDS = ("label", "tag", "rating", "feedback", "desirable", "good", "thumb", "chosen", "accept")
"""Parts of names that a column with labels may have."""
_PLAIN_LABELS = frozenset({"true", "false", "1", "0", "1.0", "0.0"})


def read_label(row: Mapping[str, Any]) -> tuple[bool, str, str]:
    """The label, its column, and how it was understood if it is neither true nor 1 nor their opposites.

    Raises BadRowError.
    """
    name = next((name for name in LABELS if row.get(name) is not None), None)
    if name is None:
        other = next((key for key, value in row.items() if _may_be_label(key, value)), None)
        if other is not None:
            raise BadRowError(f"no label; rename the column {other} to label")
        raise BadRowError(f"no label (its columns: {columns_of(row)})")
    value = row[name]
    meaning = _meaning(value)
    if meaning is None:
        raise BadRowError(f"{name} {value!r:.40} is neither true nor false")
    column = "" if name == LABELS[0] else f"{name} as label"
    if str(value).strip().lower() in _PLAIN_LABELS:
        return meaning, name, column
    return meaning, name, f"{name} {value} as {str(meaning).lower()}"


def _may_be_label(name: str, value: object) -> bool:
    """Whether a column looks like the label: it has such a value, and a number only under such a name."""
    if _meaning(value) is None:
        return False
    number = not isinstance(value, bool) and str(value).strip().lstrip("+-").replace(".", "").isdigit()
    return not number or any(word in str(name).lower() for word in _LABEL_WORDS)


def _meaning(value: object) -> bool | None:
    """Whether a label means desirable; None for other values."""
    if not isinstance(value, bool | int | float | str):
        return None
    word = str(value).strip().lower()
    return True if word in DESIRABLE else False if word in UNDESIRABLE else None


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for messages."""
    return ", ".join(map(str, row))[:80] or "none"
