"""Reads a data set's examples one by one, and keeps what was noticed: bad rows, forms, unused columns."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from kto_sweep.data.formats import parse_row
from kto_sweep.data.labels import LABELS
from kto_sweep.data.messages import BadRowError
from kto_sweep.data.raw_rows import FORMATS_HINT
from kto_sweep.data.rows import Example
from kto_sweep.data.sources import read_rows
from kto_sweep.errors import DataError
from kto_sweep.text import counted

Progress = Callable[[int], None]
"""Gets the number of examples done."""

CHECKED = 200_000
"""Examples that are read before a run exists, in some ten seconds; training reads and reports the rest."""

DataSource = str | Sequence[str]
"""One file, folder or hub data set, or several."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    """Line in the data set (see Places)."""
    why: str
    """In a few words: `no assistant turn`."""


@dataclass
class Places:
    """Where rows are: lines are counted over all files of a data set, one after another."""

    files: list[tuple[int, str]] = field(default_factory=list)
    """(lines before it, name) of each file."""

    def add(self, file: str, number: int, last: int) -> int:
        """The line in the data set of line `number` of `file`, which is read after line `last`."""
        if not self.files or self.files[-1][1] != file:
            self.files.append((last, file))
        return self.files[-1][0] + number

    def name(self, line: int) -> str:
        """A line for people: `17`, or `b.jsonl:17` if there are several files."""
        if len(self.files) < 2:
            return str(line)
        before, file = next((before, file) for before, file in reversed(self.files) if before < line)
        return f"{file}:{line - before}"


@dataclass
class DataNotes:
    """What was noticed while the rows of a data set were read; complete once all are read."""

    path: str
    """The file or hub id, for messages."""
    places: Places = field(default_factory=Places)
    rows: int = 0
    """Rows read, usable or not."""
    bad: list[BadRow] = field(default_factory=list)
    broken: list[tuple[int, DataError]] = field(default_factory=list)
    """Lines that are not JSON, and why; training rejects data with any."""
    facts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Lines of the rows that were changed, by what was changed."""
    forms: Counter[str] = field(default_factory=Counter)
    """Rows in another form than kto-sweep's own, by how they were understood."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Rows with a value in a column that is not used, by column."""

    def no_usable_row(self, more: Sequence[BadRow] = ()) -> DataError:
        """The error for data without a usable row."""
        bad = [*self.bad, *more]
        why = describe_bad(bad, self.places) if bad else "it has no rows"
        return DataError(f"{self.path}: no usable row: {why}", hint=f"a row is {FORMATS_HINT}")

    def sentences(self) -> list[str]:
        """How rows were understood, changed and left aside, for people."""
        return [
            *(f"{counted(n, 'row')} understood as {form}" for form, n in self.forms.most_common()),
            *(f"{counted(len(lines), 'row')} {fact}" for fact, lines in self.facts.items()),
            *([f"not used: {listed_counts(self.ignored)}"] if self.ignored else []),
        ]


def read_examples(
    source: DataSource, base_dirs: Sequence[Path] = (), *, keep_broken: bool = False
) -> tuple[DataNotes, Iterator[Example]]:
    """The examples of `source`, in order; the notes fill while the iterator runs.

    Raises DataError: no such file; the iterator raises it for a row that cannot be read. With `keep_broken`,
    lines that are not JSON are noted instead.
    """
    path, rows = read_rows(source, base_dirs, keep_broken=keep_broken)
    notes = DataNotes(path)

    def examples() -> Iterator[Example]:
        line = 0
        numbers: dict[int, int] = {}
        for row in rows:
            line = notes.places.add(row.file, row.number, line)
            notes.rows += 1
            if isinstance(row.value, DataError):
                notes.broken.append((line, row.value))
                continue
            _check_signs(notes, numbers, row.value, line)
            try:
                parsed = parse_row(row.value, line)
            except BadRowError as error:
                notes.bad.append(BadRow(line, str(error)))
                continue
            notes.forms.update(parsed.forms)
            for fact in parsed.facts:
                notes.facts[fact].append(line)
            notes.ignored.update(parsed.ignored)
            yield from parsed.examples

    return notes, examples()


def _check_signs(notes: DataNotes, seen: dict[int, int], row: object, line: int) -> None:
    """Raise DataError for labels 0 and -1 in one data set: 0 is then neutral rather than undesirable.

    `seen`: the first line of each of the two.
    """
    value = (
        next((row[name] for name in LABELS if row.get(name) is not None), None)
        if isinstance(row, dict)
        else None
    )
    if isinstance(value, bool) or value not in (0, -1, "0", "-1"):
        return
    seen.setdefault(int(value), line)
    if len(seen) == 2:
        where = " and ".join(f"{label} in line {notes.places.name(at)}" for label, at in sorted(seen.items()))
        raise DataError(
            f"{notes.path}: labels 0 and -1 in one data set ({where})",
            hint="delete the rows with label 0 if it means neutral; else write true and false",
        )


def check_readable(source: DataSource, progress: Progress = lambda _: None) -> None:
    """Read the first CHECKED examples. Raises DataError as read_examples does, and if no row is usable."""
    notes, examples = read_examples(source)
    if not sum(1 for _ in islice(counted_examples(examples, progress), CHECKED)):
        raise notes.no_usable_row()


def counted_examples(examples: Iterable[Example], progress: Progress) -> Iterator[Example]:
    """The examples; `progress` gets the number of those done from time to time."""
    for done, example in enumerate(examples):
        if done % 1024 == 0:
            progress(done)
        yield example


def listed_counts(counts: Counter[str]) -> str:
    """`source (400 rows), id (12 rows)`."""
    return ", ".join(f"{name} ({counted(n, 'row')})" for name, n in counts.most_common())


def describe_bad(bad: Sequence[BadRow], places: Places, *, shown: int = 5) -> str:
    """All reasons with their lines, most frequent first: `2 no assistant turn (lines 17, 912)`."""
    lines: dict[str, list[int]] = defaultdict(list)
    for row in bad:
        lines[row.why].append(row.line)
    reasons = sorted(lines.items(), key=lambda item: -len(item[1]))
    texts = []
    for why, numbers in reasons[:shown]:
        listed = ", ".join(map(places.name, numbers[:shown])) + (", ..." if len(numbers) > shown else "")
        texts.append(f"{len(numbers):,} {why} (line{'' if len(numbers) == 1 else 's'} {listed})")
    if len(reasons) > shown:
        texts.append(f"{sum(len(numbers) for _, numbers in reasons[shown:]):,} others")
    return "; ".join(texts)
