"""The folder of kto-sweep's files on a machine: `KTO_SWEEP_HOME`, by default `~/.kto-sweep`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folders of one KTO_SWEEP_HOME; each is created on first use."""

    root: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Home":
        """The home in KTO_SWEEP_HOME, or `~/.kto-sweep`."""
        path = environ.get("KTO_SWEEP_HOME", "")
        return cls(Path(path).expanduser().resolve() if path else Path.home() / ".kto-sweep")

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
