"""What a server that was killed or is abused leaves behind, and what it refuses."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from machine import Machine
from sdk_scripts import graphql

from kto_sweep.errors import ServerError
from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server, running_server
from kto_sweep.server.published_address import MAX_LOG


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


def test_no_second_server_on_a_database_whose_lock_was_removed(own_machine: Machine) -> None:
    machine = own_machine
    first, pid = machine.address, server_pid(machine.home)
    for name in ("lock", "address.json"):
        (machine.home.server / name).unlink()
    with pytest.raises(ServerError, match=r"a running server uses .*runs\.sqlite3"):
        ensure_server(machine.home)
    while running_server(machine.home) is None:
        time.sleep(0.05)
    assert ensure_server(machine.home) == first
    assert server_pid(machine.home) == pid


def test_a_server_whose_database_is_removed_stops(own_machine: Machine) -> None:
    machine = own_machine
    pid = server_pid(machine.home) if machine.address else None
    assert pid is not None
    machine.home.database.unlink()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


SERVER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 500))
from kto_sweep.server import connections, main
connections.HEADERS_SECONDS = float(sys.argv[2])
main.main(["--home", sys.argv[1], "--port", "0"])
"""


@pytest.mark.parametrize("seconds", [60.0, 0.2])
def test_silent_connections_neither_stop_the_server_nor_stay(tmp_path: Path, seconds: float) -> None:
    machine, log = Machine(tmp_path), tmp_path / "home" / "server" / "server.log"
    log.parent.mkdir(parents=True)
    command = [sys.executable, "-c", SERVER, str(machine.home.root), str(seconds)]
    with log.open("ab") as output, subprocess.Popen(command, stderr=output) as process:
        while (server := running_server(machine.home)) is None:
            assert process.poll() is None
            time.sleep(0.05)
        address = urlsplit(server.url)
        count = 600 if seconds > 1 else 2  # more than the server's files; or, that the deadline closes
        silent = [socket.create_connection((address.hostname, address.port), 30) for _ in range(count)]
        silent[-1].sendall(b"GET /ready HTT")
        assert httpx.get(f"{server.url}/ready").status_code == 200
        for connection in silent[:1] if seconds > 1 else silent:
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert log.read_bytes() == b""
        os.truncate(log, MAX_LOG + 1)
        while log.stat().st_size:
            time.sleep(0.05)
        assert log.with_name("server.log.1").stat().st_size == MAX_LOG
        process.terminate()
        for connection in silent:
            connection.close()
