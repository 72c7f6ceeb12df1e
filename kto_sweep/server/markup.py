"""HTML from data, with every text escaped: whatever a run calls itself, it stays text."""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 600; background: #7c42; }
pre { overflow-x: auto; background: #8881; padding: .8rem; }
nav, .quiet { color: #777; }
"""
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)
"""Content-Security-Policy: nothing but this very style sheet."""


@dataclass(frozen=True)
class Link:
    """A text that leads to another page of this server."""

    text: str
    parts: tuple[str, ...]
    """The path, segment by segment."""

    @property
    def path(self) -> str:
        """The path with every segment quoted."""
        return "/" + "/".join(quote(part, safe="") for part in self.parts)


Cell = str | int | float | bool | Link | None


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    cells: Sequence[Cell]
    best: bool = False


def document(title: str, trail: Sequence[Link], body: Iterable[str], *, refresh: int | None = None) -> str:
    """A whole page; `trail` leads back, `refresh` is the seconds after which it is loaded anew."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    crumbs = " / ".join(_link(link) for link in trail)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{again}<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<nav>{crumbs}</nav><h1>{escape(title)}</h1>{''.join(body)}</body></html>"
    )


def section(title: str, *parts: str) -> str:
    """A titled part of a page."""
    return f"<h2>{escape(title)}</h2>{''.join(parts)}"


def paragraph(text: str) -> str:
    """One line of text."""
    return f'<p class="quiet">{escape(text)}</p>'


def preformatted(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{escape(text)}</pre>"


def table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """A table; the best row carries a star before its first cell, and not colour alone."""
    numeric = [all(_is_number(row.cells[i]) for row in rows) for i in range(len(headings))] if rows else []
    head = "".join(
        _cell("th", escape(text), right=bool(rows) and numeric[i]) for i, text in enumerate(headings)
    )
    lines = [_row(row, numeric) for row in rows]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _row(row: Row, numeric: Sequence[bool]) -> str:
    cells = [_cell("td", _content(cell), right=numeric[i]) for i, cell in enumerate(row.cells)]
    if row.best:
        cells[0] = cells[0].replace(">", ">★ ", 1)
    kind = ' class="best"' if row.best else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _cell(tag: str, content: str, *, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{content}</{tag}>"


def _content(cell: Cell) -> str:
    return _link(cell) if isinstance(cell, Link) else escape(show(cell))


def _link(link: Link) -> str:
    return f'<a href="{escape(link.path)}">{escape(link.text)}</a>'


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def show(value: object) -> str:
    """A value for people: numbers to four digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
