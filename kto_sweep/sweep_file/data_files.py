"""Checks that the data files named by a sweep file exist."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.data.files import DATA_SUFFIXES, is_hub_id
from kto_sweep.errors import Problem
from kto_sweep.shipped_files import find_file, shipped_names
from kto_sweep.sweep_file.parameters import GivenValue
from kto_sweep.text import nearest

EXAMPLE = "examples/support_replies.jsonl"


@dataclass(frozen=True)
class DataFileChecker:
    """Looks for data files as an agent does: below the current folder, then among the shipped examples."""

    cwd: Path
    root: Path
    """The parent of the sweep file's folder; a notice names it if the data is only there."""

    def problems(self, datasets: Sequence[GivenValue]) -> Iterator[Problem]:
        """A problem for each data file that does not exist; hub ids are not checked."""
        for given in datasets:
            name = given.value
            if not isinstance(name, str) or not looks_like_file(name):
                continue
            if (self.cwd / name).is_dir():
                inside = [str(Path(name) / file.name) for file in _data_files(self.cwd / name)]
                hint = inside[0] if inside else EXAMPLE
                yield Problem(given.place, f"{name} is a folder", "A trial needs a data file.", hint)
            elif find_file(name, self.cwd) is None and not (self.root / name).is_file():
                why = f"Looked in {self.cwd} and {self.root}."
                yield Problem(given.place, f"no data file {name}", why, self._nearest(name))

    def notices(self, datasets: Sequence[GivenValue]) -> Iterator[str]:
        """A notice for each data file that an agent started in the current folder would not find."""
        for given in datasets:
            if find_file(str(given.value), self.cwd) is None and (self.root / str(given.value)).is_file():
                yield f"{given.value} is not below the current folder: start agents in {self.root}"

    def _nearest(self, name: str) -> str:
        folder = Path(name).expanduser().parent
        names = [
            str(folder / file.name) for base in (self.cwd, self.root) for file in _data_files(base / folder)
        ]
        names += [shipped for shipped in shipped_names() if Path(shipped).suffix in DATA_SUFFIXES]
        by_name = {Path(path).name: path for path in reversed(names)}
        near = nearest(name, names) or by_name.get(nearest(Path(name).name, by_name) or "")
        return near or EXAMPLE


def looks_like_file(name: str) -> bool:
    """True for a path; False for a hub id such as trl-lib/kto-mix-14k, or that:FILE."""
    if is_hub_id(name):
        return False
    if name.startswith(("/", "./", "../", "~")) or Path(name).suffix in DATA_SUFFIXES:
        return True
    return name.count("/") != 1 or name.endswith("/")


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix in DATA_SUFFIXES)
