"""A row of a data file before it is parsed, whatever the file's format."""

from dataclasses import dataclass

FORMATS_HINT = (
    'one JSON object a line: {"conversations": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}], "label": true}'
)
"""The hint of every error about the format of a row."""


@dataclass(frozen=True)
class RawRow:
    """One row before it is parsed."""

    number: int
    """Line in a text file, else position; counted from 1 in each file."""
    value: object
    """A JSON value, an object in every usable row; or the DataError of a line that is not JSON."""
    file: str
    """The file or hub dataset of the row, as shown in messages."""
