"""What all tests have: a port for each server, their order, and the base model of boxes that train."""

import contextlib
import os
import shutil
import socket
from pathlib import Path

import pytest

from kto_sweep.home import Home
from kto_sweep.server.listening import FIRST_PORT

FIRST = ("agent", "faults", "train_command", "sweep")
"""Folders whose tests start whole boxes: they come first, that no process is left alone with a long one."""
PORT = pytest.StashKey[socket.socket]()


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, and keep the usual port taken.

    Boxes of several tests train at once, all on the CPU; `CUDA_VISIBLE_DEVICES=0 pytest -k cuda` is for the
    tests of a GPU. And each server has a port of its own, and finds it free after its death.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    if not hasattr(config, "workerinput"):
        with contextlib.suppress(OSError):
            config.stash[PORT] = socket.create_server(("127.0.0.1", FIRST_PORT))


def pytest_unconfigure(config: pytest.Config) -> None:
    if PORT in config.stash:
        config.stash[PORT].close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model, made once for all processes of a run: each box would take seconds for its own."""
    from kto_sweep.train.tiny import tiny_model

    root = tmp_path_factory.getbasetemp()
    return tiny_model((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "models")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Home:
    """One for a module, with the tiny base model in it."""
    home = Home(tmp_path_factory.mktemp("home"))
    shutil.copytree(tiny_base, home.models / tiny_base.name)
    return home
