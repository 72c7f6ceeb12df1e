"""`$regex` in a run filter, as a function for SQLite."""

import re
from functools import lru_cache

LONGEST_PATTERN = 200
LONGEST_TEXT = 500
"""Characters of a value that are searched."""
_NESTED_REPEAT = re.compile(r"[*+}]\)?[*+{]|[*+}][^()]*\)[*+{]")
"""A repeat of a repeat, such as (a+)+: the search may take longer than the world lasts."""


def matches_pattern(pattern: str, value: object) -> int:
    """1 when the pattern is found in the value. Raises ValueError for a pattern that is no good."""
    if value is None:
        return 0
    return int(_compiled(pattern).search(str(value)[:LONGEST_TEXT]) is not None)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> "re.Pattern[str]":
    if len(pattern) > LONGEST_PATTERN or _NESTED_REPEAT.search(pattern):
        raise ValueError("the pattern is too long, or repeats a repeat")
    return re.compile(pattern)


def check_pattern(pattern: str) -> None:
    """Raises ValueError, saying why, for a pattern that cannot be searched for."""
    try:
        _compiled(pattern)
    except re.error as problem:
        raise ValueError(f"not a regular expression: {problem}") from problem
