"""The folder of kto-sweep's files on a machine: `KTO_SWEEP_HOME`, by default `~/.kto-sweep`."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kto_sweep.errors import UsageError
from kto_sweep.paths import resolved

MAX_PATH = 1000
"""Characters of a home's path: those of its files must stay below the system's 4,096."""


USERS_UMASK = "KTO_SWEEP_UMASK"
"""Environment variable with the user's own umask, in octal, for workers."""


@contextmanager
def users_umask() -> Iterator[None]:
    """The user's own umask while the block writes outside the home.

    That is the hub's cache, which others may share, and a file that a command was asked for.
    """
    ours = os.umask(int(os.environ.get(USERS_UMASK, "77"), 8))
    try:
        yield
    finally:
        os.umask(ours)


@dataclass(frozen=True)
class Home:
    """The folders of one KTO_SWEEP_HOME; each is created on first use."""

    root: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Home":
        """The home in KTO_SWEEP_HOME, or `~/.kto-sweep`. Raises UsageError if its path cannot be one."""
        path = environ.get("KTO_SWEEP_HOME", "")
        if len(path) > MAX_PATH:
            raise UsageError(
                f"KTO_SWEEP_HOME has {len(path):,} characters", hint=f"use a path of at most {MAX_PATH:,}"
            )
        try:
            return cls(resolved(path) if path else Path.home() / ".kto-sweep")
        except UsageError as error:
            raise UsageError(f"KTO_SWEEP_HOME={error}", hint="export KTO_SWEEP_HOME=/a/folder") from error
        except RuntimeError as error:
            raise UsageError("your home folder is unknown", hint="export KTO_SWEEP_HOME=/a/folder") from error

    def keep_private(self) -> None:
        """Make all files that this process and its children create readable by the user alone.

        An existing home is closed to others at its top; files in it may be older than this rule.
        """
        os.environ.setdefault(USERS_UMASK, f"{os.umask(0o077):o}")  # first: a worker inherits ours
        with suppress(OSError):  # no home yet, or that of another user, whose files this one cannot open
            found = self.root.stat()
            if found.st_uid == os.geteuid() and found.st_mode & 0o077 and self._is_own(found.st_mode):
                self.root.chmod(0o700)

    def _is_own(self, mode: int) -> bool:
        """Whether the folder is a home alone: KTO_SWEEP_HOME may be /tmp, or the user's home folder."""
        names = {entry.name for entry in self.root.iterdir()}
        own = {"server", "sweeps", "runs", "models", "cache", "agents", "workers"}
        return not mode & stat.S_ISVTX and (not names or bool(own & names)) and self.root != Path.home()

    @property
    def server(self) -> Path:
        """The embedded server's key, database, uploaded files and log."""
        return self.root / "server"

    @property
    def database(self) -> Path:
        """The embedded server's database; it does not exist before the server's first start."""
        return self.server / "runs.sqlite3"

    @property
    def sweeps(self) -> Path:
        """One small record per sweep created or run from this machine."""
        return self.root / "sweeps"

    @property
    def runs(self) -> Path:
        """One folder per run: log, adapters, W&B's own files."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """Models generated locally, such as the tiny preset."""
        return self.root / "models"

    @property
    def cache(self) -> Path:
        """Reference log-probs, and tokens of large data sets, keyed by content."""
        return self.root / "cache"
