"""`$regex` in a run filter, as a function for SQLite.

Some patterns take longer on some texts than the world lasts, and the standard library's search would keep all
other threads waiting meanwhile. Hence `regex`, which lets them go on and gives up when its time is over.
"""

import sqlite3
import time
from functools import lru_cache

import regex

MAX_PATTERN = 200
MAX_TEXT = 500
"""Characters of a value that are searched."""
MAX_SECONDS = 1.0
"""Seconds that the searches of one filter may take in all."""


def matches_pattern(pattern: str, value: object, deadline: float) -> int:
    """1 when the pattern is found in the value. Raises TimeoutError when `deadline` has come."""
    if value is None:
        return 0
    left = max(0.0, deadline - time.monotonic())
    found = _compiled(pattern).search(str(value)[:MAX_TEXT], timeout=left, concurrent=True)
    return int(found is not None)


def check_pattern(pattern: str) -> None:
    """Raises ValueError, saying why, for a pattern that cannot be searched for."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern has more than {MAX_PATTERN} characters")
    try:
        _compiled(pattern)
    except (regex.error, RecursionError) as problem:
        raise ValueError(f"not a regular expression: {problem}") from problem


def deadline() -> float:
    """When a filter that is read now has to have its answer, by the monotonic clock."""
    return time.monotonic() + MAX_SECONDS


def timed_out(problem: sqlite3.Error) -> bool:
    """Whether a query failed because its deadline came: SQLite says no more than that a function raised."""
    return "user-defined function" in str(problem)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(pattern)
