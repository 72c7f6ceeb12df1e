"""Whether the data files that a sweep file names are there, before a GPU waits for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.data.files import is_hub_id
from kto_sweep.shipped_files import find_file, shipped_names
from kto_sweep.sweep_file.parameters import Use
from kto_sweep.sweep_file.yaml_source import Finding
from kto_sweep.text import nearest

_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson", ".csv", ".parquet"})
EXAMPLE = "examples/support_replies.jsonl"


@dataclass(frozen=True)
class DataFinder:
    """Looks for data files as an agent will: below the current folder, then among the shipped ones."""

    cwd: Path
    beside: Path
    """The folder that holds the sweep file's folder: named in a notice when only it has the data."""

    def findings(self, uses: Sequence[Use]) -> Iterator[Finding]:
        """A data file that is named and is not there; hub ids are left to the hub."""
        for use in uses:
            name = use.value
            if not isinstance(name, str) or not looks_like_file(name):
                continue
            if (self.cwd / name).is_dir():
                inside = [str(Path(name) / file.name) for file in _data_files(self.cwd / name)]
                hint = inside[0] if inside else EXAMPLE
                yield Finding(use.place, f"{name} is a folder", "A trial needs a data file.", hint)
            elif find_file(name, self.cwd) is None and not (self.beside / name).is_file():
                why = f"Looked in {self.cwd} and {self.beside}."
                yield Finding(use.place, f"no data file {name}", why, self._nearest(name))

    def notices(self, uses: Sequence[Use]) -> Iterator[str]:
        """Data that an agent started from here would not find."""
        for use in uses:
            if find_file(str(use.value), self.cwd) is None and (self.beside / str(use.value)).is_file():
                yield f"{use.value} is not below the current folder: start the agents in {self.beside}"

    def _nearest(self, name: str) -> str:
        folder = Path(name).expanduser().parent
        names = [
            str(folder / file.name) for base in (self.cwd, self.beside) for file in _data_files(base / folder)
        ]
        names += [shipped for shipped in shipped_names() if Path(shipped).suffix in _SUFFIXES]
        by_name = {Path(known).name: known for known in reversed(names)}
        near = nearest(name, names) or by_name.get(nearest(Path(name).name, by_name) or "")
        return near or EXAMPLE


def looks_like_file(name: str) -> bool:
    """True for a path; False for a hub id such as trl-lib/kto-mix-14k, or that:FILE."""
    if is_hub_id(name):
        return False
    if name.startswith(("/", "./", "../", "~")) or Path(name).suffix in _SUFFIXES:
        return True
    return name.count("/") != 1 or name.endswith("/")


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
