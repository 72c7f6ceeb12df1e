"""Formats values, numbers and counts for messages, and parses numbers from text."""

import difflib
import json
import math
import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TypeGuard

WRITTEN_OUT = 10**10
"""Smaller whole numbers, such as a seed, are written out."""
SMALL, LARGE = Decimal("0.001"), 10**6
"""Other numbers between them are written without a power of ten."""
_FOUR_DIGITS = Context(prec=4, rounding=ROUND_HALF_UP)  # JavaScript rounds halves up
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and those that reverse the direction of a text."""
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def number_from_text(text: str) -> int | float | None:
    """The number in `text`, or None; YAML 1.1 reads 5e-7 and 1E6, without a dot or sign, as text."""
    stripped = text.strip()
    match = _NUMBER.fullmatch(stripped)
    if match is None:
        return None
    whole = "." not in match[1] and match[3] is None
    number = int(stripped) if whole else float(stripped)
    return number if is_number(number) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number; an int must fit a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def printable(text: str) -> str:
    """The text with control characters as escapes: names and logs must not control a terminal.

    >>> printable("a name\\x1b[2J")
    'a name\\\\x1b[2J'
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def show(value: object) -> str:
    """A value for a message: text unchanged, other values as JSON; truncated to 60 characters."""
    if isinstance(value, float):
        return show_number(value)
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def number(value: object) -> str:
    """A value for people, the same text as `show` of the page's format.js; `-` for None.

    Whole numbers are written out, others have four digits, small and large ones as 2.3e-06.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else listed(value) if isinstance(value, list) else _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # 5.0 as 5: JSON and JavaScript do not tell them apart.
    if abs(value) < WRITTEN_OUT and value == int(value):
        return str(int(value))
    rounded = _FOUR_DIGITS.create_decimal(value)
    if SMALL <= abs(rounded) < LARGE:
        return f"{float(rounded):.10g}"
    mantissa, exponent = f"{rounded:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent[0]}{exponent[1:]:0>2}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def show_number(x: float) -> str:
    """A number in a form that YAML 1.1 reads as a number: 5.0e-07, not 5e-07."""
    text = repr(x)
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa}.0e{power}" if exponent and "." not in mantissa else text


def fitted(value: float, form: str, width: int) -> str:
    """The number by `form`, a format specification, or with fewer digits if that is wider than `width`.

    Every number fits 8 characters.

    >>> [fitted(value, "+.3f", 8) for value in (0.5, 12345.678, -2.5e17, -1e-300, float("inf"))]
    ['+0.500', '+12345.7', '-2.5e+17', '-0.000', '+inf']
    >>> fitted(-1.26e-300, ".1e", 8), fitted(1e30, ",.0f", 8), fitted(float("nan"), "+.3f", 8)
    ('-1e-300', '1.0e+30', 'nan')
    """
    if math.isnan(value):
        return "nan"  # it has no sign
    sign = "+" if form.startswith("+") else ""
    # Of a number below 1, fewer decimals may leave zeros alone.
    decimals = (f"{sign}.2f", f"{sign}.1f", f"{sign}.0f") if abs(value) >= 1 else ()
    texts = (format(value, candidate) for candidate in (form, *decimals, f"{sign}.1e"))
    return next((text for text in texts if len(text) <= width), format(value, f"{sign}.0e"))


def yaml_form(text: str) -> str:
    """A number's text in a form that YAML 1.1 reads as a number: 5.0e-7 for 5e-7, 1.0E+6 for 1E6."""
    match = re.fullmatch(r"([-+]?[\d.]+)([eE])([-+]?)(\d+)", text.strip())
    if match is None:
        return text.strip()
    mantissa, e, sign, power = match.groups()
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{e}{sign or '+'}{power}"


def listed(values: Iterable[object]) -> str:
    """Values as a YAML list on one line."""
    return f"[{', '.join(show(value) for value in values)}]"


def counted(n: int, noun: str) -> str:
    """`1 trial`, `9 trials`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def progress_text(what: str, done: int, total: int) -> str:
    """`reference log-probs 64/300`; `tokenised examples 20,480` if the total is unknown (0)."""
    return f"{what} {done}/{total}" if total else f"{what} {done:,}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def hours(value: float) -> str:
    """Hours to two digits: 0.0021, 3.5, 120."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def size_text(size: float) -> str:
    """A number of bytes, such as 12 KiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def nearest(word: str, known: Iterable[str], similarity: float = 0.6) -> str | None:
    """The word in `known` most similar to `word`, or None if none is similar (1: equal)."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=similarity)
    return matches[0] if matches else None
