"""The name of a sweep in every form that users type, and this box's record of each sweep that it used."""

import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.json_file import read_record_file, write_record
from kto_sweep.wandb_names import ENTITY, PROJECT

DEFAULT_PROJECT = "kto-sweep"
LOCAL_ENTITY = "local"
"""The entity of the embedded server."""
_ID = re.compile(r"[A-Za-z0-9_.\- ]{1,128}")


@dataclass(frozen=True)
class SweepRef:
    """A sweep on a server."""

    entity: str
    project: str
    id: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"

    @property
    def argument(self) -> str:
        """What to type for it after a command on any box: the id alone in the default project."""
        is_default = (self.entity, self.project) == (LOCAL_ENTITY, DEFAULT_PROJECT)
        return shlex.quote(self.id if is_default else str(self))

    def url(self, app_url: str) -> str:
        """The sweep's page."""
        return f"{app_url}/{self.entity}/{quote(self.project)}/sweeps/{self.id}"

    def run_url(self, app_url: str, run_id: str) -> str:
        """The page of one of its runs."""
        return f"{app_url}/{self.entity}/{quote(self.project)}/runs/{run_id}"


@dataclass(frozen=True)
class SweepRecord:
    """This box's record of a sweep that it created or ran."""

    entity: str
    project: str
    id: str
    local: bool
    """True on the embedded server of this KTO_SWEEP_HOME."""
    base_url: str
    """The W&B server if not local."""
    file: str
    """The sweep file that it was created from, or empty."""
    used: float
    """When it was created or last run here, in Unix seconds."""
    folder: str = ""
    """The working directory of `create`, or empty."""

    @property
    def ref(self) -> SweepRef:
        """The sweep's name."""
        return SweepRef(self.entity, self.project, self.id)

    @property
    def owner(self) -> tuple[str, str]:
        """Entity and project."""
        return self.entity, self.project


def parse_ref(text: str) -> tuple[str | None, str | None, str]:
    """(entity, project, id) of `id`, `project/id`, `entity/project/id` or a URL; None for a missing part.

    Raises UsageError for any other form.
    """
    parts = _page_parts(text.strip()) or text.strip().split("/")
    forms = (ENTITY, PROJECT, _ID)[-len(parts) :]
    fit = all(form.fullmatch(part) for form, part in zip(forms, parts, strict=False))
    if not fit or not 1 <= len(parts) <= 3:
        raise UsageError(
            f"{text!r} is not the name of a sweep",
            hint="use its id, ENTITY/PROJECT/ID, or the URL of its page; default: the last sweep used",
        )
    entity, project, sweep_id = [None] * (3 - len(parts)) + parts
    assert sweep_id is not None
    return entity, project, sweep_id


def _page_parts(text: str) -> list[str] | None:
    """Entity, project and id in the address of a sweep's page; None if `text` is no address of one.

    Browsers show addresses without their scheme; a self-managed W&B may be served below a path.
    """
    if "://" not in text and "/sweeps/" not in text:
        return None
    path = urlsplit(text if "://" in text else f"//{text}").path
    parts = [unquote(part) for part in path.split("/") if part]
    for at, part in enumerate(parts[:-1]):
        if part == "sweeps" and at >= 2:
            return [*parts[at - 2 : at], parts[at + 1]]
    return None


def save_sweep_record(
    home: Home, ref: SweepRef, *, local: bool, base_url: str, file: str = "", folder: str = ""
) -> None:
    """Record this sweep as the last one used; pass `file` and `folder` when it is created."""
    old, last = load_sweep_record(home, ref.id), load_sweep_record(home)
    used = max(time.time(), last.used + 1e-3 if last else 0.0)  # newest even after the clock was set back
    record = SweepRecord(
        ref.entity, ref.project, ref.id, local, base_url,
        file or (old.file if old else ""), used, folder or (old.folder if old else ""),
    )  # fmt: skip
    home.sweeps.mkdir(parents=True, exist_ok=True)
    write_record(home.sweeps / f"{ref.id}.json", record)


def load_sweep_record(home: Home, sweep_id: str | None = None) -> SweepRecord | None:
    """This box's record of a sweep, or without an id of the last one used; None if there is no record."""
    if sweep_id is not None:
        return _read(home.sweeps / f"{sweep_id}.json")
    records = [record for path in home.sweeps.glob("*.json") if (record := _read(path))]
    return max(records, key=lambda record: record.used, default=None)


def _read(path: Path) -> SweepRecord | None:
    return read_record_file(SweepRecord, path)
