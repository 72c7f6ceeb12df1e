"""Data on the Hugging Face hub: a dataset, with its configuration and split, or files of it."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from kto_sweep.data.raw_rows import RawRow
from kto_sweep.data.readers import format_suffix, read_file
from kto_sweep.data.table_rows import BATCH_ROWS, batch_rows
from kto_sweep.errors import DataError
from kto_sweep.home import users_umask
from kto_sweep.text import nearest

HUB_FORMS = "OWNER/NAME, OWNER/NAME:CONFIG, OWNER/NAME:CONFIG:SPLIT, OWNER/NAME::SPLIT or OWNER/NAME:FILE"
DEFAULT_SPLIT = "train"

_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<rest>.+))?")
_PARTS = re.compile(r"(?P<config>[^:\[\]]*)(:(?P<split>[\w.+]+(\[[\d:%-]+\])?))?")
_ACCESS = "check the name; for a gated or private dataset, request access and set HF_TOKEN"


@dataclass(frozen=True)
class HubData:
    """A dataset on the hub, or files of it."""

    source: str
    """As the user names it."""
    name: str
    """OWNER/NAME."""
    config: str | None = None
    """None: the dataset's default."""
    split: str = DEFAULT_SPLIT
    file: str | None = None
    """A file, or a pattern with * for several; None: the split."""

    def rows(self) -> Iterator[RawRow]:
        """The rows, downloaded first. Raises DataError."""
        if self.file is None:
            return dataset_rows(self._load(), self.source)
        return (
            row for file in self._files() for row in read_file(self._download(file), f"{self.name}:{file}")
        )

    def _load(self) -> Any:
        import datasets  # slow to import, rarely needed

        def load() -> Any:
            # Without a default, load_dataset may take the first configuration.
            config = self.config or datasets.get_dataset_default_config_name(self.name)
            if config is None:
                raise ValueError("the dataset has several configurations")
            return datasets.load_dataset(self.name, config, split=self.split)

        return self._from_hub(
            load, lambda error: self._config_or_split() if isinstance(error, ValueError) else _ACCESS
        )

    def _download(self, file: str) -> Path:
        import huggingface_hub

        def download() -> str:
            return huggingface_hub.hf_hub_download(self.name, file, repo_type="dataset")

        return Path(self._from_hub(download, lambda _: self._nearest_file()))

    def _files(self) -> list[str]:
        assert self.file is not None
        pattern = self.file
        if "*" not in pattern:
            return [pattern]
        files = self._from_hub(self._list_files, lambda _: _ACCESS)
        if matching := [file for file in files if fnmatchcase(file, pattern)]:
            return matching
        raise DataError(f"{self.source}: the dataset has no such files", hint=self._nearest_file())

    def _list_files(self) -> list[str]:
        """The data files of the dataset."""
        import huggingface_hub

        files = huggingface_hub.HfApi().list_repo_files(self.name, repo_type="dataset")
        return sorted(file for file in files if format_suffix(file))

    def _nearest_file(self) -> str:
        assert self.file is not None
        try:
            files = self._list_files()
        except Exception:  # as above
            return _ACCESS
        near = nearest(self.file, files)
        return (
            f"name one of its files: {_listed(f'{self.name}:{file}' for file in ([near] if near else files))}"
        )

    def _config_or_split(self) -> str:
        """The hint for a configuration or split that the dataset does not have."""
        import datasets

        try:
            configs = datasets.get_dataset_config_names(self.name)
            config = self.config or (configs[0] if len(configs) == 1 else "default")
            if config not in configs:
                if config in datasets.get_dataset_split_names(self.name, configs[0]):
                    return f"{config} is a split: {self.name}::{config}"
                return f"name a configuration: {_listed(f'{self.name}:{config}' for config in configs)}"
            splits = datasets.get_dataset_split_names(self.name, config)
        except Exception:  # as above
            return _ACCESS
        if self.split.partition("[")[0] in splits:
            return "download its files and name them"
        begin = f"{self.name}:{self.config or ''}"
        return f"name a split: {_listed(f'{begin}:{split}' for split in splits)}"

    def _from_hub(self, get: Callable[[], Any], hint: Callable[[Exception], str]) -> Any:
        try:
            with users_umask():
                return get()
        except Exception as error:  # the hub client raises a dozen unrelated types
            reason = str(error).strip().splitlines()
            raise DataError(
                f"{self.source}: not a local file, and loading it from the hub failed: "
                f"{reason[0] if reason else error!r}",
                hint=hint(error),
            ) from error


def parse_hub_name(source: str) -> HubData | None:
    """The dataset or files on the hub that `source` can name (HUB_FORMS); None for a local path."""
    match = _ID.fullmatch(source)
    if match is None:
        return None
    name, rest = match["name"], match["rest"]
    if rest is None:
        return None if format_suffix(name) else HubData(source, name)
    if format_suffix(rest) or "/" in rest or "*" in rest:
        return HubData(source, name, file=rest)
    parts = _PARTS.fullmatch(rest)
    if parts is None:
        return None
    return HubData(source, name, parts["config"] or None, parts["split"] or DEFAULT_SPLIT)


def dataset_rows(dataset: Any, name: str) -> Iterator[RawRow]:
    """Rows of a `datasets.Dataset`, counted from 1."""
    batches = dataset.with_format("arrow").iter(BATCH_ROWS)
    return batch_rows(batches, dataset.features.arrow_schema, dataset.features.to_dict(), name)


def _listed(names: Iterable[str]) -> str:
    """The first of the names, for a hint."""
    shown = list(islice(names, 6))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
