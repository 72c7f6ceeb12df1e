"""What a server that was killed or is abused leaves behind, and what it refuses."""

import os
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

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
    url = announce_file(machine)
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
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # else it may restore the files first
    for name in ("lock", "address.json"):
        (machine.home.server / name).unlink()
    with pytest.raises(ServerError, match=r"a running server uses .*runs\.sqlite3"):
        ensure_server(machine.home)
    os.kill(pid, signal.SIGCONT)
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
from kto_sweep.server import connections, main, request_body
connections.HEADERS_SECONDS = float(sys.argv[2])
request_body.STALL_SECONDS = connections.READ_SECONDS = 1
main.main(["--home", sys.argv[1], "--port", "0"])
"""


@contextmanager
def impatient_server(machine: Machine, headers_seconds: float) -> Iterator[None]:
    log = machine.home.server / "server.log"
    log.parent.mkdir(parents=True)
    command = [sys.executable, "-c", SERVER, str(machine.home.root), str(headers_seconds)]
    with log.open("ab") as output, subprocess.Popen(command, stderr=output) as process:
        try:
            while running_server(machine.home) is None:
                assert process.poll() is None
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def connect(machine: Machine) -> socket.socket:
    address = urlsplit(machine.address.url)
    return socket.create_connection((address.hostname, address.port), 30)


def assert_closed(connection: socket.socket) -> None:
    with suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_more_silent_connections_than_files_do_not_stop_the_server(tmp_path: Path) -> None:
    machine, log = Machine(tmp_path), tmp_path / "home" / "server" / "server.log"
    with impatient_server(machine, 60):
        silent = [connect(machine) for _ in range(600)]
        assert httpx.get(f"{machine.address.url}/ready").status_code == 200
        assert_closed(silent[0])
        assert log.read_bytes() == b""
        os.truncate(log, MAX_LOG + 1)
        while log.stat().st_size:
            time.sleep(0.05)
        assert log.with_name("server.log.1").stat().st_size == MAX_LOG
        for connection in silent:
            connection.close()


def announce_file(machine: Machine) -> SplitResult:
    """Upload and download URL of a run's file."""
    graphql(
        machine,
        'mutation { upsertBucket(input: {name: "r", entityName: "e", modelName: "p"}) { inserted } }',
    )
    announced = graphql(
        machine,
        """mutation { createRunFiles(input: {entityName: "e", projectName: "p", runName: "r",
        files: ["large"]}) { files { uploadUrl } } }""",
    )
    return urlsplit(announced["createRunFiles"]["files"][0]["uploadUrl"])


def test_clients_that_stop_in_the_middle_are_disconnected_and_slow_ones_are_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with impatient_server(machine, 1), ExitStack() as opened:
        url = announce_file(machine)
        host = f"host: {url.netloc}\r\n".encode()
        key = b64encode(f"api:{machine.address.key}".encode())
        query = b"POST /graphql HTTP/1.1\r\nauthorization: Basic " + key + b"\r\n" + host
        put = f"PUT {url.path} HTTP/1.1\r\n".encode() + host
        silent, half, slow, stalled_query, stalled_upload = (
            opened.enter_context(connect(machine)) for _ in range(5)
        )
        half.sendall(b"GET /ready HTT")
        slow.sendall(put + b"content-length: 10\r\n\r\n")
        stalled_query.sendall(query + b"content-length: 10\r\n\r\n{")
        stalled_upload.sendall(put + b"content-length: 1000000\r\n\r\n" + b"x" * 600_000)
        for _ in range(10):  # longer than the second that a stalled body has
            slow.sendall(b"x")
            time.sleep(0.15)
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
        for without_request in (silent, half):
            assert_closed(without_request)
        for stalled in (stalled_query, stalled_upload):
            response = HTTPResponse(stalled)
            response.begin()
            assert (response.status, response.getheader("connection")) == (408, "close")
            assert b"did not arrive" in response.read()
            assert_closed(stalled)
        assert httpx.get(url.geturl()).content == b"x" * 10
        size = 32 * 2**20  # more than the sockets' buffers hold
        assert httpx.put(url.geturl(), content=bytes(size)).status_code == 200
        reader = opened.enter_context(connect(machine))
        reader.sendall(f"GET {url.path} HTTP/1.1\r\n".encode() + host + b"\r\n")
        received = len(reader.recv(1))
        while is_connected(reader):
            time.sleep(0.05)
        with suppress(ConnectionResetError):
            while part := reader.recv(2**20):
                received += len(part)
        assert received < size
        assert not [*(machine.home.server / "files").glob("*/*.part")]
        assert (machine.home.server / "server.log").read_bytes() == b""


def is_connected(connection: socket.socket) -> bool:
    """Whether the server has this connection of a client still open."""
    port = f"{connection.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].endswith(f":{port}") and row[3] == "01" for row in rows)
