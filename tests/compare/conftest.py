"""A real server with a seeded sweep, and the command line against it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "browser"))

from seeds import Site

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = Home(tmp_path_factory.mktemp("site") / "home")
    site = Site(ensure_server(home))
    yield site
    site.close()
    stop_server(home)


@pytest.fixture
def kto_sweep(site: Site, tmp_path: Path) -> Command:
    """Runs a command; to it the server is one that somebody else runs."""

    def run(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "kto_sweep", *args],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "KTO_SWEEP_HOME": str(tmp_path / "home"),
                "WANDB_BASE_URL": site.url,
                "WANDB_API_KEY": site.address.key,
                "WANDB_ERROR_REPORTING": "false",
                "OMP_NUM_THREADS": "1",
                "PYTHONIOENCODING": "utf-8",
                **env,
            },
            text=True,
            capture_output=True,
            check=False,
        )

    return run
