"""Lines of text on a terminal, wrapped at spaces: a terminal itself breaks them inside words."""

import re
import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text

from kto_sweep.text import printable

MAX_INDENT = 12
"""Spaces at the start of a continued line."""
_COMMAND = re.compile(r"(?:^|[\s`(])(?:(?:kto-sweep|wandb|pip|hf|make|iconv|jq|kill) [a-z-]|export [A-Z])")
"""A line with a command stays whole: a newline in it would be copied too."""


def wrap_words(text: str, width: int) -> str:
    """The text in lines of at most `width` characters, unless a word is longer or a line has a command.

    >>> print(wrap_words("  the first sentence is long", 20))
      the first sentence
        is long
    """
    return "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width or _COMMAND.search(line):
        return line
    text = line.lstrip()
    start = line[: len(line) - len(text)]
    return "\n".join(
        textwrap.wrap(
            text,
            width,
            initial_indent=start,
            subsequent_indent=" " * min(len(start) + 2, MAX_INDENT),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


class LineConsole(Console):
    """A console that prints text as whole lines to a file or pipe, and wraps it at spaces on a terminal.

    Control characters become visible: rich itself removes only some of them.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a line, of a cell of a table or of a progress bar."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, text that is not in a table as above."""
        if objects and all(isinstance(item, str | Text) for item in objects):
            options["soft_wrap"] = True
            if self.is_terminal:
                objects = tuple(self._wrapped(item) for item in objects)
        super().print(*objects, **options)

    def _wrapped(self, item: str | Text) -> str | Text:
        if isinstance(item, str):
            return wrap_words(item, self.width)
        # Wrapping shifts what follows it; styles are at the beginning of a line of ours.
        return Text(wrap_words(item.plain, self.width), spans=item.spans)
