"""Exactly one server per home: find, start, stop, kill, replace."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kto_sweep.errors import ServerError
from kto_sweep.home import Home
from kto_sweep.local_server import start
from kto_sweep.local_server.process import ServerAddress, read_address, server_pid, write_address
from kto_sweep.local_server.start import ensure_server, running_server, stop_server

ENSURE = """
import pathlib, sys
from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server
print(ensure_server(Home(pathlib.Path(sys.argv[1]))).url)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    stop_server(home)


def test_concurrent_starts_share_one_server(home: Home) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", ENSURE, str(home.root)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    urls = {process.communicate()[0].strip() for process in processes}
    assert len(urls) == 1
    server = running_server(home)
    assert server is not None
    assert urls == {server.url}


def test_a_server_that_lost_the_start_race_is_stopped(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two start at once, and this one still loads its libraries when the other is up."""
    started = []

    def slow_to_start(home: Home) -> int:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        subprocess.run([sys.executable, "-c", ENSURE, str(home.root)], check=True, stdout=subprocess.DEVNULL)
        return started[0].pid

    monkeypatch.setattr(start, "_start", slow_to_start)
    assert ensure_server(home) == running_server(home)
    assert started[0].wait(10) == -signal.SIGTERM


def test_stopped_server_is_gone_and_the_next_one_takes_its_port_and_key(home: Home) -> None:
    first = ensure_server(home)
    assert running_server(home) == first
    assert stop_server(home)
    assert running_server(home) is None
    assert not stop_server(home)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{first.url}/ready")
    assert ensure_server(home) == first


def test_logins_and_links_survive_a_restart_of_the_server(home: Home) -> None:
    address = ensure_server(home)
    used, unused = address.login_link(), address.login_link()
    with httpx.Client() as browser:
        assert browser.get(used).status_code == 303
        stop_server(home)
        again = ensure_server(home).url  # with another port, if another server took the first one
        used, unused = (link.replace(address.url, again) for link in (used, unused))
        assert browser.get(f"{again}/-/data/sweeps").status_code == 200
    assert httpx.get(used).status_code == 401
    assert httpx.get(unused).status_code == 303


def test_stale_address_of_a_killed_server_is_ignored(home: Home) -> None:
    first = ensure_server(home)
    pid = server_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert read_address(home) is not None
    assert running_server(home) is None
    assert ensure_server(home) == first


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": 1, "port": 2, "pid": 3, "version": "4"}', "\x00"])
def test_a_damaged_address_is_none(home: Home, text: str) -> None:
    address = ServerAddress("http://127.0.0.1:1", 1, 2, "3")
    home.server.mkdir(parents=True)
    write_address(home, address)
    assert read_address(home) == address
    (home.server / "address.json").write_text(text)
    assert read_address(home) is None


def test_port_in_use_by_another_program_is_not_taken(home: Home) -> None:
    first = ensure_server(home)
    stop_server(home)
    port = int(first.url.rsplit(":", 1)[1])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        second = ensure_server(home)
        assert second.url != first.url
        assert second.key == first.key


def test_two_homes_have_two_servers(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    try:
        one, two = ensure_server(home), ensure_server(other)
        assert one.url != two.url
        assert one.key != two.key
    finally:
        stop_server(other)


def foreground(home: Home, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kto_sweep.server", "--home", str(home.root), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_second_server_in_the_foreground_names_the_first(home: Home) -> None:
    first = ensure_server(home)
    done = foreground(home)
    assert done.returncode == 1
    assert f"is already running at {first.url}" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_in_use_is_one_clear_message(home: Home) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = foreground(home, "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_public_address_needs_expose(home: Home) -> None:
    done = foreground(home, "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--expose" in done.stderr
    assert "ssh -N -L" in done.stderr


def test_missing_certificate_is_one_clear_message(home: Home) -> None:
    done = foreground(home, "--certificate", "/nosuch.pem")
    assert done.returncode == 2
    assert "no such file: /nosuch.pem" in done.stderr


def test_server_with_a_certificate_serves_https(home: Home, tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(certificate), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )
    certificate.write_text(certificate.read_text() + (tmp_path / "certificate.pem").read_text())
    exposed = ["--host", "0.0.0.0", "--expose", "--certificate", str(certificate)]
    process = subprocess.Popen(
        [sys.executable, "-m", "kto_sweep.server", "--home", str(home.root), "--port", "0", *exposed]
    )
    while (server := running_server(home)) is None:
        assert process.poll() is None
        time.sleep(0.05)
    assert server.url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    query = {"query": "{ viewer { username } }"}
    answer = httpx.post(f"{server.url}/graphql", json=query, auth=("api", server.key), verify=trust)
    assert answer.json()["data"]["viewer"]["username"] == "local"
    assert "; secure" in httpx.get(server.login_link(), verify=trust).headers["set-cookie"]
    process.terminate()
    assert process.wait(timeout=15) == 0


def test_server_that_cannot_start_says_why(home: Home) -> None:
    home.server.mkdir(parents=True)
    (home.server / "runs.sqlite3").write_text("this is no database" * 1000)
    with pytest.raises(ServerError, match="is damaged") as caught:
        ensure_server(home)
    assert str(start.log_path(home)) in caught.value.hint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_server_cleanly(home: Home, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kto_sweep.server", "--home", str(home.root), "--port", "0"]
    )
    while running_server(home) is None:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=15) == 0
    assert [path.name for path in home.server.glob("runs.sqlite3*")] == ["runs.sqlite3"]


def test_import_is_light() -> None:
    code = """
import sys, kto_sweep.local_server.start
print([name for name in ("starlette", "graphql", "yaml", "torch", "wandb") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
