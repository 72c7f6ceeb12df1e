"""Rows of CSV and TSV text with a header; every cell is text."""

import csv
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from kto_sweep.data.raw_rows import RawRow
from kto_sweep.errors import DataError

DELIMITERS = (",", ";", "\t")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def find_delimiter(header: str) -> tuple[str, int]:
    """The delimiter that gives a header the most columns, and how many."""
    csv.field_size_limit(sys.maxsize)  # of the whole process; by default 131,072 characters
    columns = {
        delimiter: len(next(csv.reader([header], delimiter=delimiter), ())) for delimiter in DELIMITERS
    }
    delimiter = max(DELIMITERS, key=columns.__getitem__)
    return delimiter, columns[delimiter]


def read_csv(lines: Iterator[str], name: str) -> Iterator[RawRow]:
    """Rows of a file's lines; the number of a row is its first line.

    Raises DataError: no usable header, a row with more or fewer cells than it, broken quotes.
    """
    begin: list[str] = []
    for line in lines:
        begin.append(line)
        if line.strip():
            break
    header: Sequence[str] = ()
    number = 1
    try:
        delimiter, _ = find_delimiter(begin[-1] if begin else "")
        reader = csv.reader(_without_nul(chain(begin, lines), name), delimiter=delimiter, strict=True)
        for cells in reader:
            if cells and not header:
                header = _checked_header(cells, f"{name}:{number}")
            elif cells:  # a blank line has none
                if len(cells) != len(header):
                    raise _wrong_count(cells, header, delimiter, f"{name}:{number}")
                yield RawRow(number, dict(zip(header, cells, strict=True)), name)
            number = reader.line_num + 1
    except csv.Error as error:
        raise _broken(error, number, name) from error


def _without_nul(lines: Iterable[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise DataError(
                f"{name}:{number}: a NUL character",
                hint=f"remove it: tr -d '\\000' < {shlex.quote(name)} > clean.csv",
            )
        yield line


def _checked_header(cells: Sequence[str], where: str) -> Sequence[str]:
    header = [cell.strip() for cell in cells]
    if header[0].lower().startswith("sep="):
        raise DataError(f"{where}: a line for Excel, not a header", hint="delete the line")
    if len(header) == 1:
        raise DataError(
            f"{where}: the header has one column, {header[0]}",
            hint="a header is prompt,completion,label, with commas, semicolons or tabs between",
        )
    if "" in header:
        raise DataError(
            f"{where}: column {header.index('') + 1} of the header has no name",
            hint="name it, or write the file without pandas' index: df.to_csv('rows.csv', index=False)",
        )
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(
            f"{where}: the header has the column {repeated[0]} twice", hint="rename or remove one of the two"
        )
    return header


def _wrong_count(cells: Sequence[str], header: Sequence[str], delimiter: str, where: str) -> DataError:
    count = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
    return DataError(
        f"{where}: {count}, but the header has {len(header)} columns",
        hint=f'put double quotes around a cell that has a {_NAMES[delimiter]} or a line break in it: "..."'
        if len(cells) > len(header)
        else "add the missing cells, which may be empty",
    )


def _broken(error: csv.Error, number: int, name: str) -> DataError:
    """The error for a row that begins in line `number`."""
    reason = str(error)
    if reason.startswith("new-line character"):
        return DataError(
            f"{name}:{number}: lines end with a carriage return only",
            hint=f"convert them: tr '\\r' '\\n' < {shlex.quote(name)} > rows.csv",
        )
    if reason == "unexpected end of data":
        return DataError(
            f"{name}:{number}: a quoted cell that begins in this row never ends",
            hint='close it; within a quoted cell, a quote is written twice: ""',
        )
    return DataError(
        f"{name}:{number}: broken quotes: {reason}",
        hint='quote the whole cell, and write a quote in it twice: "a ""word"" in it"',
    )
