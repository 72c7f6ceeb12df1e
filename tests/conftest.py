"""Shared by all tests: fork servers, one port per server, the order of folders, machines, the base model."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import fake_worker
import forked_python
import pytest
import python_forkserver
from hypothesis import settings
from machine import Machine, made_once

from kto_sweep.home import Home
from kto_sweep.server.listen import FIRST_PORT

FIRST = ("agent", "faults", "train_command", "sweep", "train", "server")
"""Folders with the longest tests, in the order in which they run before all others, so that no test process
ends long after the others."""
PORT = pytest.StashKey[socket.socket]()

settings.register_profile("suite", deadline=None)  # a busy machine must fail no test
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, use one thread of torch's per process, and occupy the default port.

    Several tests train at once, so all of them use the CPU; `CUDA_VISIBLE_DEVICES=0 pytest -k cuda` runs the
    tests that need a GPU. With the default port occupied, each server picks a port of its own, which is still
    free when the server is started again.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the threads of several processes wait in busy loops
    if not hasattr(config, "workerinput"):
        with contextlib.suppress(OSError):
            config.stash[PORT] = socket.create_server(("127.0.0.1", FIRST_PORT))
        config.add_cleanup(python_forkserver.start())


def pytest_unconfigure(config: pytest.Config) -> None:
    if PORT in config.stash:
        config.stash[PORT].close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model, made once for all test processes: it takes seconds."""
    with made_once(tmp_path_factory, "models") as folder:
        if not folder.exists():
            make = f"from kto_sweep.train.tiny import *; tiny_model(Path({str(folder)!r}))"
            done = python_forkserver.run(("-c", make), folder.parent, os.environ, forked_python.TORCH)
            assert done.returncode == 0, done.stderr
        (model,) = (child for child in folder.iterdir() if child.is_dir())
        return model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Home:
    """A home with the tiny base model, for all tests of a module."""
    home = Home(tmp_path_factory.mktemp("home"))
    shutil.copytree(tiny_base, home.models / tiny_base.name)
    return home


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Machine]:
    """A machine with the tiny base model, for all tests of a module."""
    machine = Machine(tmp_path_factory.mktemp("machine"), cli=forked_python.CLI)
    machine.add_model(tiny_base)
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def fake_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose workers need neither torch nor a model, for all tests of a module."""
    machine = Machine(tmp_path_factory.mktemp("machine"), cli=fake_worker.CLI)
    yield machine
    machine.close()
