"""From raw rows to examples: prompt, completion and label.

{"conversations": [turns], "label": true}      the last assistant turn is the completion,
{"messages": [turns], "label": 0}              all turns before it are the prompt
{"prompt": ..., "completion": ..., "label": "false"}     both as text, or as lists of turns
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.data.messages import BadRowError, read_turns
from kto_sweep.data.raw_rows import FORMATS_HINT
from kto_sweep.data.rows import Example, Message
from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError

_DESIRABLE = frozenset(
    {"true", "1", "1.0", "yes", "y", "t", "good", "desirable", "chosen", "positive", "accepted"}
)
_UNDESIRABLE = frozenset(
    {"false", "0", "0.0", "no", "n", "f", "bad", "undesirable", "rejected", "negative", "declined"}
)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    """Line in the file (row of a table), counted from 1."""
    why: str
    """In a few words: `no assistant turn`."""


@dataclass(frozen=True)
class LoadedData:
    """All rows of one data file, usable or not."""

    path: str
    """The file or hub id, for messages."""
    examples: list[Example]
    bad: list[BadRow]
    cut_turns: int
    """Rows with turns after the last assistant turn, which are dropped."""


def load_examples(source: str | Sequence[str], *, base_dirs: Sequence[Path] = ()) -> LoadedData:
    """Every row of one source or several (sources.SOURCE_FORMS) as an example or a bad row.

    Raises DataError: no such file; a line that is not JSON; no usable row.
    """
    path, rows = read_rows(source, base_dirs)
    examples: list[Example] = []
    bad: list[BadRow] = []
    cut_turns = 0
    for row in rows:
        try:
            example, cut = parse_row(row.value, row.number)
        except BadRowError as error:
            bad.append(BadRow(row.number, str(error)))
        else:
            examples.append(example)
            cut_turns += cut
    if not examples:
        why = describe_bad(bad) if bad else "it has no rows"
        raise DataError(f"{path}: no usable row: {why}", hint=f"a row is {FORMATS_HINT}")
    return LoadedData(path, examples, bad, cut_turns)


def parse_row(row: object, line: int) -> tuple[Example, bool]:
    """The row as an example, and whether turns after its last assistant turn were dropped.

    Raises BadRowError.
    """
    if not isinstance(row, dict):
        raise BadRowError("not a JSON object")
    _check_unicode(row)
    for field in ("conversations", "messages"):
        if row.get(field) is not None:
            return _from_turns(read_turns(row[field], field), row, line)
    if "prompt" not in row or "completion" not in row:
        raise BadRowError(_missing(row))
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _from_text(prompt, completion, row, line)
    turns = [*_turns_of(prompt, "prompt", "user"), *_turns_of(completion, "completion", "assistant")]
    return _from_turns(turns, row, line)


def _check_unicode(row: dict[str, object]) -> None:
    """Raise BadRowError for half a surrogate pair, which JSON allows and tokenizers reject."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("invalid Unicode (half a surrogate pair)") from error


def _from_turns(turns: list[Message], row: dict[str, object], line: int) -> tuple[Example, bool]:
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise BadRowError("no assistant turn")
    if last == 0:
        raise BadRowError("no prompt before the assistant turn")
    completion = turns[last]
    if not completion["content"].strip() and "tool_calls" not in completion:
        raise BadRowError("empty completion")
    example = Example(tuple(turns[:last]), (completion,), _label(row), line)
    return example, last + 1 < len(turns)


def _from_text(prompt: str, completion: str, row: dict[str, object], line: int) -> tuple[Example, bool]:
    if not prompt.strip():
        raise BadRowError("empty prompt")
    if not completion.strip():
        raise BadRowError("empty completion")
    return Example(prompt, completion, _label(row), line), False


def _turns_of(value: object, field: str, role: str) -> list[Message]:
    """Turns of a prompt or completion field, which may be text when the other is a list."""
    return [{"role": role, "content": value}] if isinstance(value, str) else read_turns(value, field)


def _label(row: dict[str, object]) -> bool:
    value = row.get("label")
    if value is None:
        raise BadRowError("no label")
    word = str(value).strip().lower()
    if isinstance(value, bool | int | float | str):
        if word in _DESIRABLE:
            return True
        if word in _UNDESIRABLE:
            return False
    raise BadRowError(f"label {value!r:.40} is neither true nor false")


def _missing(row: dict[str, object]) -> str:
    """Why a row without a supported set of fields cannot be used."""
    if "chosen" in row and "rejected" in row:
        return (
            "a preference pair (chosen, rejected): write each answer as its own row, with label true or false"
        )
    for field, other in (("prompt", "completion"), ("completion", "prompt")):
        if field in row:
            return f"{field} without {other}"
    return "no conversations, no messages, and no prompt with completion"


def describe_bad(bad: Sequence[BadRow], *, shown: int = 5) -> str:
    """All reasons with their lines, most frequent first: `2 no assistant turn (lines 17, 912)`."""
    lines: dict[str, list[int]] = defaultdict(list)
    for row in bad:
        lines[row.why].append(row.line)
    reasons = sorted(lines.items(), key=lambda item: -len(item[1]))
    texts = []
    for why, numbers in reasons[:shown]:
        listed = ", ".join(map(str, numbers[:shown])) + (", ..." if len(numbers) > shown else "")
        texts.append(f"{len(numbers):,} {why} (line{'' if len(numbers) == 1 else 's'} {listed})")
    if len(reasons) > shown:
        texts.append(f"{sum(len(numbers) for _, numbers in reasons[shown:]):,} others")
    return "; ".join(texts)
