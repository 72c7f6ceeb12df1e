"""Standard streams that stop no command, whether closed, a full disk or a pipe whose reader has exited."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""Standard streams in the order of their file descriptors."""


class SafeStream(io.TextIOBase):
    """Writes to `stream`; after an error, discards all output: a closed terminal must not stop training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        """Why output was lost; None if the reader of a pipe has exited, such as `head`."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """How the stream encodes what its encoding does not have."""
        return self._stream.errors

    def write(self, text: str) -> int:
        """Write the text if the stream still accepts output."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream if it still accepts output."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._discard(error)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the stream."""
        return self._stream.fileno()

    def _discard(self, error: OSError | ValueError) -> None:
        """Redirect buffered output to /dev/null, so that flushing it at exit does not fail."""
        if isinstance(error, OSError) and error.errno != errno.EPIPE:
            self.failure = self.failure or error
        null = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError, ValueError):
            os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def safe_streams() -> Iterator[SafeStream]:
    """Make the standard streams safe until the end of the block; yields standard output."""
    _open_closed()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = safe, _ = SafeStream(streams[0]), SafeStream(streams[1])
    try:
        yield safe
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


def _open_closed() -> None:
    """Open /dev/null in place of each closed stream: the next file to be opened would get its descriptor."""
    for descriptor, (name, mode) in enumerate(_MODES.items()):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
