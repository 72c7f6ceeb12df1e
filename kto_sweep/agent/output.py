"""Standard output that may go away: a closed terminal or pipe is no reason to stop training."""

import io
import os
import sys
from typing import TextIO


class SturdyOutput(io.TextIOBase):
    """Writes to `stream` as long as that takes it, then into nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write, if anybody is there to read."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._sink()
            return len(text)

    def flush(self) -> None:
        """Flush likewise."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._sink()

    def isatty(self) -> bool:
        """Whether a person is looking."""
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """As of the stream."""
        return self._stream.fileno()

    def _sink(self) -> None:
        """What is still in buffers must not fail at the end of the process either."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                os.dup2(nothing, stream.fileno())
        os.close(nothing)
