"""What a server that was killed or is abused leaves behind, and what it refuses."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from machine import Machine
from sdk_scripts import graphql

from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server


@pytest.fixture
def own_machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose server the test may harm."""
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def kill_server(machine: Machine) -> None:
    pid = server_pid(machine.home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_upload_of_a_killed_server_is_removed_at_the_next_start(own_machine: Machine) -> None:
    machine = own_machine
    graphql(
        machine,
        'mutation { upsertBucket(input: {name: "r", entityName: "e", modelName: "p"}) { inserted } }',
    )
    announced = graphql(
        machine,
        """mutation { createRunFiles(input: {entityName: "e", projectName: "p", runName: "r",
        files: ["large"]}) { files { uploadUrl } } }""",
    )
    url = urlsplit(announced["createRunFiles"]["files"][0]["uploadUrl"])
    head = f"PUT {url.path} HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-length: 1000000\r\n\r\n"
    folder = machine.home.server / "files"
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(head.encode() + b"x" * 600_000)
        while not [*folder.glob("*/*.part")]:
            time.sleep(0.01)
        kill_server(machine)
    assert [*folder.glob("*/*.part")]
    ensure_server(machine.home)
    assert [*folder.glob("*/*")] == []
