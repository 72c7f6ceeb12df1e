"""kto-sweep cache: show and prune the cached reference log-probs and tokens."""

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from kto_sweep.cli.output import console, json_option, print_json
from kto_sweep.text import size_text

if TYPE_CHECKING:
    from kto_sweep.data.kept_tokens import KeptTokens
    from kto_sweep.train.reference_store import Entry

_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


def _age(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Seconds of an age such as 30d."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not an age; use hours, days or weeks: 12h, 30d, 8w")
    return int(match[1]) * _HOURS[match[2]] * 3600.0


@click.command()
@click.option(
    "--older-than", "age", metavar="AGE", callback=_age, help="Only entries not used for this long: 30d."
)
@click.option("--prune", is_flag=True, help="Remove the entries, except those in use by a running trial.")
@json_option
def cache(age: float | None, prune: bool, as_json: bool) -> None:
    """Show the reference log-probs cached on this box, by base model, and the tokens of large data sets.

    The cache saves later trials a pass of the base model over all rows, and can always be recomputed.

    \b
    kto-sweep cache
    kto-sweep cache --older-than 30d --prune
    kto-sweep cache --prune --json
    """
    from kto_sweep.data.kept_tokens import kept_tokens, remove_tokens
    from kto_sweep.home import Home
    from kto_sweep.train.reference_store import entries, remove

    cached = Home.from_environment().cache
    folder = cached / "reference"
    before = time.time() - age if age is not None else float("inf")
    chosen = [entry for entry in entries(folder) if entry.used <= before]
    removed = {entry.path for entry in chosen if prune and remove(entry)}
    tokens = [entry for entry in kept_tokens(cached) if entry.used <= before]
    if prune:
        for kept_entry in tokens:
            remove_tokens(kept_entry)
    if as_json:
        described = [
            _as_json(entry) | ({"removed": entry.path in removed} if prune else {}) for entry in chosen
        ]
        size = sum(entry.size for entry in chosen)
        sets = [_tokens_as_json(entry) | ({"removed": True} if prune else {}) for entry in tokens]
        print_json({"folder": str(folder), "bytes": size, "entries": described, "tokens": sets})
        return
    out = console()
    if not chosen and not tokens:
        out.print(f"Nothing {'that old ' if age is not None else ''}in {folder}", soft_wrap=True)
        return
    for kept_entry in tokens:
        what = "Removed the tokens" if prune else "Tokens"
        about = f"{kept_entry.rows:,} rows, {size_text(kept_entry.size)}"
        out.print(f"{what} of {kept_entry.data}: {about}", markup=False, soft_wrap=True)
    if chosen:
        _print_table(chosen, f"Reference log-probs in {folder}")
    if prune and chosen:
        freed = size_text(sum(entry.size for entry in chosen if entry.path in removed))
        kept = len(chosen) - len(removed)
        out.print(
            f"Removed {len(removed)}, {freed}." + (f" Kept {kept}, in use by running trials." if kept else "")
        )
    elif not prune:
        out.print("Next: kto-sweep cache --older-than 30d --prune")


def _print_table(chosen: "list[Entry]", title: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    table.add_column("base model", overflow="fold")
    for name in ("weights", "quantization", "computed in"):
        table.add_column(name)
    for name in ("rows", "size", "last used"):
        table.add_column(name, justify="right")
    for entry in chosen:
        damaged = entry.rows is None
        model = f"damaged: {entry.path.name}" if damaged else entry.about.get("model") or "?"
        about = [entry.about.get(name, "-") for name in ("fingerprint", "quantization", "dtype")]
        rows = "-" if entry.rows is None else f"{entry.rows:,}"
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        cells = [model, about[0][:8], *about[1:], rows, size_text(entry.size), used]
        table.add_row(*(escape(cell) for cell in cells))
    console().print(table)


def _as_json(entry: "Entry") -> dict[str, Any]:
    about = {name: entry.about.get(name) for name in ("model", "fingerprint", "quantization", "dtype")}
    return about | {
        "rows": entry.rows,
        "bytes": entry.size,
        "last_used": datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds"),
        "file": entry.path.name,
        "damaged": entry.rows is None,
    }


def _tokens_as_json(entry: "KeptTokens") -> dict[str, Any]:
    return {
        "data": entry.data,
        "rows": entry.rows,
        "bytes": entry.size,
        "last_used": datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds"),
    }
