"""Rows of JSON text: JSON lines, one list, or objects that span lines.

Lines are read one by one. A file that is one JSON document is read as a whole.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NoReturn

from kto_sweep.data.csv_rows import find_delimiter
from kto_sweep.data.raw_rows import FORMATS_HINT, RawRow
from kto_sweep.errors import DataError

MAX_DEPTH = 100
"""Lists and objects within each other in one row; Python's own limit is near 1,000 and not of the file."""
_ROW_LISTS = ("data", "train", "rows", "examples", "instances", "samples", "records", "items")
"""Keys of a document that hold its rows, as in {"version": 1, "data": [...]}."""
_ROW_KEYS = frozenset({"conversations", "messages", "completion", "chosen"})
"""A key that rows have, and turns and tools have not."""
_SPACE = re.compile(r"[\s\ufeff]*")
"""Between values; a byte-order mark stands there where files were joined."""


class _AbsurdJsonError(ValueError):
    """JSON that Python accepts, but that no row can mean."""


def read_json(lines: Iterator[str], name: str) -> Iterator[RawRow]:
    """Rows of a file's lines; of a line that is not JSON, its DataError.

    Raises DataError for one document that is not JSON: where its rows begin is unknown.
    """
    filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    number, first = next(filled, (0, ""))
    if not first:
        return
    if _continues(first):
        text = "".join(["\n" * (number - 1), first, *lines])
        yield from _read_document(list(_values(text, name)), name)
        return
    value = _parse_line(first, number, name)
    second = next(filled, None)
    if second is None and not isinstance(value, DataError):
        yield from _read_document([(number, value)], name)
        return
    yield RawRow(number, value, name)
    for number, line in chain([second] if second is not None else [], filled):
        yield RawRow(number, _parse_line(line, number, name), name)


def _continues(line: str) -> bool:
    """Whether the value that begins in this line ends in a later one."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip()) and line.lstrip()[0] in "[{"
    except (ValueError, RecursionError):
        return False
    return False


def _read_document(values: Sequence[tuple[int, object]], name: str) -> Iterator[RawRow]:
    """Rows of a whole file: the items of its only value, or its values, each with the line it begins in."""
    items = _items(values[0][1], name) if len(values) == 1 else None
    if items is None:
        yield from (RawRow(number, value, name) for number, value in values)
    else:
        yield from (RawRow(position, item, name) for position, item in enumerate(items, start=1))


def _items(value: object, name: str) -> Sequence[object] | None:
    """The rows in a document; None for an object that is a row itself."""
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        return None
    if _is_table(value):
        raise DataError(
            f"{name}: one object that holds columns or groups, not rows",
            hint="write rows, in pandas: df.to_json('rows.jsonl', orient='records', lines=True)",
        )
    lists: dict[str, list[object]] = {key: items for key, items in value.items() if _are_objects(items)}
    key = next((key for key in lists if key in _ROW_LISTS or _are_rows(lists[key])), None)
    if key is None:
        return None
    if len(lists) > 1:
        raise DataError(
            f"{name}: several lists of rows: {', '.join(lists)}",
            hint=f"write each to its own file: jq -c '.{key}[]' {shlex.quote(name)} > {key}.jsonl",
        )
    return lists[key]


def _is_table(value: Mapping[str, object]) -> bool:
    """Whether a document is a table as pandas writes it by default, or has rows deeper inside."""
    by_column = isinstance(value.get("label"), list | dict) or {"columns", "data"} <= value.keys()
    return by_column or (bool(value) and all(isinstance(part, dict) for part in value.values()))


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _are_rows(items: Sequence[object]) -> bool:
    return all(isinstance(item, dict) and not _ROW_KEYS.isdisjoint(item) for item in items)


def _values(text: str, name: str) -> Iterator[tuple[int, object]]:
    """Every JSON value of a text, and the line in which it begins."""
    end, number = 0, 1
    while (begin := _end_of_space(text, end)) < len(text):
        number += text.count("\n", end, begin)
        value, end = _decode(text, begin, number, 1, name)
        yield number, value
        number += text.count("\n", begin, end)


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()


def _parse_line(line: str, number: int, name: str) -> object:
    """The value of a line, or its DataError."""
    text = line.rstrip()  # else an error at its end is one in the next line
    try:
        value, end = _decode(text, _end_of_space(text, 0), number, number, name)
    except DataError as error:
        return error
    if end < len(text):
        extra = json.JSONDecodeError("Extra data", text, _end_of_space(text, end))
        return _broken(extra, text, number, number, name)
    return value


def _decode(text: str, begin: int, number: int, first: int, name: str) -> tuple[object, int]:
    """The value that begins at `begin`, in line `number` of a text whose first line is line `first`; its end.

    Raises DataError with the line of the error.
    """
    try:
        value, end = _DECODER.raw_decode(text, begin)
        openings = text.count("[", begin, end) + text.count("{", begin, end)
        if openings > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
    except json.JSONDecodeError as error:
        raise _broken(error, text, number, first, name) from error
    except RecursionError as error:
        raise _absurd(f"lists or objects nested more than {MAX_DEPTH} deep", number, name) from error
    except _AbsurdJsonError as error:
        raise _absurd(str(error), number, name) from error
    except ValueError as error:  # Python refuses whole numbers of more than 4,300 digits
        raise _absurd("a number with thousands of digits", number, name) from error
    return value, end


def _broken(error: json.JSONDecodeError, text: str, number: int, first: int, name: str) -> DataError:
    line = first + error.lineno - 1
    hint = _hint_for(text, error, line, name)
    if line > number:
        hint = f"fix it: it is in the value that begins in line {number}; a row is {FORMATS_HINT}"
    return DataError(f"{name}:{line}: broken JSON: {error.msg} (column {error.colno})", hint=hint)


def _absurd(what: str, number: int, name: str) -> DataError:
    return DataError(f"{name}:{number}: {what}", hint=f"fix or delete line {number}; a row is {FORMATS_HINT}")


def _hint_for(text: str, error: json.JSONDecodeError, line: int, name: str) -> str:
    begin = text.lstrip()
    if begin.startswith(("{'", "[{'")):
        return "this is a Python object: write rows with json.dumps(row)"
    if text[error.pos :].strip() == ",":
        return (
            f"remove the comma at the end of line {line}, and of the others; or put [ and ] around all rows"
        )
    if error.msg == "Extra data":
        return f"write each row on its own line: jq -c . {shlex.quote(name)} > rows.jsonl"
    if not begin.startswith(("{", "[")) and find_delimiter(begin.partition("\n")[0])[1] > 1:
        return f"if this is a CSV file, name it so: mv {shlex.quote(name)} rows.csv"
    return f"fix or delete line {line}; a row is {FORMATS_HINT}"


def _depth(value: object) -> int:
    """How deep lists and objects are nested: 0 for a number."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _object_without_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [key for key, _ in pairs]
        repeated = next(key for key in names if names.count(key) > 1)
        raise _AbsurdJsonError(f"an object has the key {json.dumps(repeated)} twice")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise _AbsurdJsonError(f"{word} is not JSON; a missing value is null")


_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_repeated_keys, parse_constant=_refuse_constant)
