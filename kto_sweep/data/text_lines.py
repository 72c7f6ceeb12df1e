"""Lines of text from bytes, in UTF-8 or any encoding with a byte-order mark."""

import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kto_sweep.errors import DataError

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32"),  # before UTF-16's, which it begins with
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_TEXT_FORMATS = "text is JSON lines, JSON, CSV or TSV"


def find_encoding(head: bytes, name: str) -> str:
    """utf-8, utf-16 or utf-32 for a file that begins with `head`.

    Raises DataError for UTF-16 and UTF-32 without a byte-order mark, and for what is not text.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    # Nearly all of JSON's and CSV's first characters are ASCII: in wider units, the other bytes are 0.
    zeros = [head[i::4].count(0) > len(head) // 5 for i in range(4)]
    guess = {
        (False, True, True, True): "UTF-32LE",
        (True, True, True, False): "UTF-32BE",
        (False, True, False, True): "UTF-16LE",
        (True, False, True, False): "UTF-16BE",
    }.get((zeros[0], zeros[1], zeros[2], zeros[3]))
    if guess is not None:
        raise DataError(f"{name}: {guess} text without a byte-order mark", hint=_convert(guess, name))
    has_broken_characters = "\ufffd" in head[:-3].decode(errors="replace")  # the last may be cut off
    if has_broken_characters and sum(byte < 9 for byte in head) > len(head) // 100:
        raise DataError(f"{name}: neither text nor a parquet or Arrow file", hint=_TEXT_FORMATS)
    return "utf-8"


def read_lines(stream: BinaryIO, encoding: str, name: str) -> Iterator[str]:
    r"""Lines that end with \n, as written; nothing else ends a line. Without a byte-order mark.

    Raises DataError with the line that is not text in this encoding.
    """
    if encoding == "utf-8":
        return _read_utf8(stream, name)
    return _read_wide(stream, encoding, name)


def _read_utf8(stream: BinaryIO, name: str) -> Iterator[str]:
    has_wide_characters = False
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            wide = has_wide_characters or any(
                char > "\x7f" and char != "\ufffd" for char in line.decode(errors="replace")
            )
            raise DataError(
                f"{name}:{number}: not UTF-8 text (byte 0x{line[error.start]:02x})",
                hint=_hint(line, number, name, wide=wide),
            ) from error
        has_wide_characters = has_wide_characters or not text.isascii()
        yield text.removeprefix("\ufeff") if number == 1 else text


def _hint(line: bytes, number: int, name: str, *, wide: bool) -> str:
    if wide:
        return f"fix line {number}: the rest of the file is UTF-8"
    western = _convert("WINDOWS-1252", name)
    return f"{western}   (for Western European text; otherwise put the file's encoding in its place)"


def _read_wide(stream: BinaryIO, encoding: str, name: str) -> Iterator[str]:
    number = 0
    text = io.TextIOWrapper(stream, encoding, newline="\n")
    try:
        for line in text:
            number += 1
            yield line
    except UnicodeError as error:
        raise DataError(
            f"{name}:{number + 1}: broken {encoding.upper()} text near here: {error}",
            hint="write the file again, as UTF-8",
        ) from error
    finally:
        text.detach()  # the caller closes the stream


def _convert(encoding: str, name: str) -> str:
    path, file = Path(name), shlex.quote(name)
    unpack = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(path.suffix)
    if unpack is None:
        return f"convert it: iconv -f {encoding} -t UTF-8 {file} > utf8{path.suffix}"
    return f"convert it: {unpack} {file} | iconv -f {encoding} -t UTF-8 > utf8{Path(path.stem).suffix}"
