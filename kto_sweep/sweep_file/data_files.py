"""Checks that the data files named by a sweep file exist."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.data.hub_data import parse_hub_name
from kto_sweep.data.readers import format_suffix
from kto_sweep.data.sources import data_files, find_local, find_parts
from kto_sweep.errors import DataError, Problem
from kto_sweep.parameter_types import source_names
from kto_sweep.paths import user_path
from kto_sweep.shipped_files import shipped_names
from kto_sweep.sweep_file.parameters import GivenValue
from kto_sweep.text import nearest
from kto_sweep.trial import check_value

EXAMPLE = "examples/support_replies.jsonl"


@dataclass(frozen=True)
class DataFileChecker:
    """Looks for data files as an agent does: below the current folder, then among the shipped examples."""

    cwd: Path
    root: Path
    """The parent of the sweep file's folder; a notice names it if the data is only there."""

    def problems(self, datasets: Sequence[GivenValue]) -> Iterator[Problem]:
        """A problem for each value with data that does not exist or is unclear; hub ids are not checked."""
        for given in datasets:
            try:
                missing = [name for name in _named_files(given) if not self._find(name)]
                if missing:
                    why = f"Looked in {self.cwd} and {self.root}."
                    yield Problem(given.place, f"no data file {missing[0]}", why, self._nearest(missing[0]))
                else:
                    find_parts(_names(given), (self.cwd, self.root))
            except DataError as error:
                yield Problem(given.place, error.message, hint=error.hint)

    def notices(self, datasets: Sequence[GivenValue]) -> Iterator[str]:
        """A notice for each data file that an agent started in the current folder would not find."""
        for given in datasets:
            for name in _named_files(given):
                if not find_local(name, (self.cwd,)) and self._find(name):
                    yield f"{name} is not below the current folder: start agents in {self.root}"

    def _find(self, name: str) -> list[Path]:
        return find_local(name, (self.cwd, self.root))

    def _nearest(self, name: str) -> str:
        folder = user_path(name).parent
        names = [
            str(folder / file.name) for base in (self.cwd, self.root) for file in data_files(base / folder)
        ]
        names += [shipped for shipped in shipped_names() if format_suffix(shipped)]
        by_name = {Path(path).name: path for path in reversed(names)}
        near = nearest(name, names) or by_name.get(nearest(Path(name).name, by_name) or "")
        return near or EXAMPLE


def _names(given: GivenValue) -> tuple[str, ...]:
    """The names in a value; none in one that no trial accepts."""
    value, problem = check_value("dataset", given.value)
    return () if problem else source_names(value)


def _named_files(given: GivenValue) -> list[str]:
    """The names in a value that cannot be on the hub."""
    return [name for name in _names(given) if parse_hub_name(name) is None]
