"""Shared by all tests: one port per server, the order of folders, and the base model for training."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine

from kto_sweep.home import Home
from kto_sweep.server.listen import FIRST_PORT

FIRST = ("agent", "faults", "train_command", "sweep")
"""Folders with the longest tests. They run first, so that no test process ends long after the others."""
PORT = pytest.StashKey[socket.socket]()


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, and occupy the default port.

    Several tests train at once, so all of them use the CPU; `CUDA_VISIBLE_DEVICES=0 pytest -k cuda` runs the
    tests that need a GPU. With the default port occupied, each server picks a port of its own, which is still
    free when the server is started again.
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
    """The tiny base model, made once for all test processes: it takes seconds."""
    from kto_sweep.train.tiny import tiny_model

    root = tmp_path_factory.getbasetemp()
    return tiny_model((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "models")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Home:
    """A home with the tiny base model, for all tests of a module."""
    home = Home(tmp_path_factory.mktemp("home"))
    shutil.copytree(tiny_base, home.models / tiny_base.name)
    return home


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Machine]:
    """A machine with the tiny base model, for all tests of a module."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.add_model(tiny_base)
    yield machine
    machine.close()
