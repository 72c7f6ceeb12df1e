"""`$regex` in a run filter, as an SQLite function.

A pattern can backtrack exponentially, and the standard library's `re` holds the GIL meanwhile. The `regex`
package releases the GIL and has a timeout. Its compiler has neither, and writes counted repeats out: their
size is limited before.
"""

import re
import sqlite3
import time
from functools import lru_cache

import regex

MAX_PATTERN = 200
MAX_SIZE = 100_000
"""Maximum characters of a pattern with its counted repeats written out: 0.1 s and 20 MB to compile."""
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
    """Raises ValueError for a pattern that is invalid, too long, or repeats too much to be compiled."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern has more than {MAX_PATTERN} characters")
    if _size(pattern) > MAX_SIZE:
        raise ValueError(
            f"with its repeats written out the pattern has more than {MAX_SIZE:,} characters; use smaller"
            " counts in {...}, or + or *"
        )
    try:
        _compiled(pattern)
    except (regex.error, RecursionError, MemoryError) as problem:
        raise ValueError(f"not a regular expression: {problem}") from problem


def deadline() -> float:
    """Deadline of a filter that is compiled now, on the monotonic clock."""
    return time.monotonic() + MAX_SECONDS


def timed_out(problem: sqlite3.Error) -> bool:
    """Whether a query failed at its deadline: SQLite only reports that a user-defined function raised."""
    return "user-defined function" in str(problem)


def _size(pattern: str) -> int:
    """At least the characters of the pattern with its counted repeats written out.

    A repeat of one character contains no other repeat. All others, such as of a group, may contain each
    other: to find out which do means to parse all of `regex`'s syntax.
    """
    size, factor = len(pattern), 1
    for before, text in re.findall(r"(.?)\{([^{}]*)", pattern, re.DOTALL):
        count = max(map(int, re.findall(r"\d+", text)), default=1)
        if before.isalnum() or before in {"]", "."}:
            size += count
        else:
            factor *= max(1, count)
    return size * factor


@lru_cache(maxsize=16)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(pattern)
