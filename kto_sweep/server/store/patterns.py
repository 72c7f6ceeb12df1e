"""`$regex` in a run filter, as an SQLite function.

A pattern can backtrack exponentially, and the standard library's `re` holds the GIL meanwhile. The `regex`
package releases the GIL and has a timeout.
"""

import sqlite3
import time
from functools import lru_cache

import regex

MAX_PATTERN = 200
MAX_TEXT = 500
"""Only these first characters of a value are searched."""
MAX_SECONDS = 1.0
"""Total seconds for all searches of one filter."""


def matches_pattern(pattern: str, value: object, deadline: float) -> int:
    """1 if the pattern matches anywhere in the value, else 0. Raises TimeoutError at `deadline`."""
    if value is None:
        return 0
    timeout = max(0.0, deadline - time.monotonic())
    match = _compiled(pattern).search(str(value)[:MAX_TEXT], timeout=timeout, concurrent=True)
    return int(match is not None)


def check_pattern(pattern: str) -> None:
    """Raises ValueError for an invalid or too long pattern."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern has more than {MAX_PATTERN} characters")
    try:
        _compiled(pattern)
    except (regex.error, RecursionError) as problem:
        raise ValueError(f"not a regular expression: {problem}") from problem


def deadline() -> float:
    """Deadline of a filter that is compiled now, on the monotonic clock."""
    return time.monotonic() + MAX_SECONDS


def timed_out(problem: sqlite3.Error) -> bool:
    """Whether a query failed at its deadline: SQLite only reports that a user-defined function raised."""
    return "user-defined function" in str(problem)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(pattern)
