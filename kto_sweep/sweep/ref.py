"""The name of a sweep, in each form in which people have it, and what this box remembers of it."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.json_file import read_record_file, write_record

_NAME = re.compile(r"[A-Za-z0-9_.\- ]{1,128}")
_PROJECT = re.compile(r"[^/\\#?%:\x00-\x1f\x7f]{1,128}")
"""As W&B has it."""


@dataclass(frozen=True)
class SweepRef:
    """A sweep on a server."""

    entity: str
    project: str
    id: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"

    def url(self, app_url: str) -> str:
        """The sweep's page."""
        return f"{app_url}/{self.entity}/{quote(self.project)}/sweeps/{self.id}"

    def run_url(self, app_url: str, run_id: str) -> str:
        """The page of one of its runs."""
        return f"{app_url}/{self.entity}/{quote(self.project)}/runs/{run_id}"


@dataclass(frozen=True)
class SweepRecord:
    """What this box remembers of a sweep that it created or ran."""

    entity: str
    project: str
    id: str
    local: bool
    """On the embedded server of this KTO_SWEEP_HOME."""
    base_url: str
    """The W&B server otherwise."""
    file: str
    """The sweep file it was created from, or empty."""
    used: float
    """When it was last created or run here, Unix seconds."""
    folder: str = ""
    """Where it was created, or empty."""

    @property
    def ref(self) -> SweepRef:
        """The sweep's name."""
        return SweepRef(self.entity, self.project, self.id)

    @property
    def ref_owner(self) -> tuple[str, str]:
        """Entity and project."""
        return self.entity, self.project


def parse_ref(text: str) -> tuple[str | None, str | None, str]:
    """(entity, project, id) of `id`, `project/id`, `entity/project/id` or a URL; None where not given.

    Raises UsageError when it is none of these.
    """
    path = text.strip()
    if "://" in path:
        parts = [unquote(part) for part in urlsplit(path).path.split("/") if part]
        if len(parts) >= 4 and parts[2] == "sweeps":
            parts = [parts[0], parts[1], parts[3]]
    else:
        parts = path.split("/")
    forms = (_NAME, _PROJECT, _NAME)[-len(parts) :]
    fit = all(form.fullmatch(part) for form, part in zip(forms, parts, strict=False))
    if not fit or not 1 <= len(parts) <= 3:
        raise UsageError(
            f"{text!r} is not the name of a sweep",
            hint="give its id, ENTITY/PROJECT/ID, or the address of its page (default: the sweep used last)",
        )
    entity, project, sweep_id = [None] * (3 - len(parts)) + parts
    assert sweep_id is not None
    return entity, project, sweep_id


def remember(
    home: Home, ref: SweepRef, *, local: bool, base_url: str, file: str = "", folder: str = ""
) -> None:
    """Note that this sweep was used now; `file` and `folder` when it was created."""
    known, last = recall(home, ref.id), recall(home)
    used = max(time.time(), last.used + 1e-3 if last else 0.0)  # also by a clock that was set back
    record = SweepRecord(
        ref.entity, ref.project, ref.id, local, base_url,
        file or (known.file if known else ""), used, folder or (known.folder if known else ""),
    )  # fmt: skip
    home.sweeps.mkdir(parents=True, exist_ok=True)
    write_record(home.sweeps / f"{ref.id}.json", record)


def recall(home: Home, sweep_id: str | None = None) -> SweepRecord | None:
    """What this box knows of a sweep; without an id, of the one used last."""
    if sweep_id is not None:
        return _read(home.sweeps / f"{sweep_id}.json")
    records = [record for path in home.sweeps.glob("*.json") if (record := _read(path))]
    return max(records, key=lambda record: record.used, default=None)


def _read(path: Path) -> SweepRecord | None:
    return read_record_file(SweepRecord, path)
