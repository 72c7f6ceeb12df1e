"""Requests to servers that may not answer: through which proxy, with which certificates, and what is read."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kto_sweep.http import Answer, NoAnswerError, get

PAGES: Mapping[str, tuple[int, dict[str, str]]] = {
    "/": (200, {}),
    "/absent": (404, {}),
    "/broken": (503, {}),
    "/loop": (302, {"location": "/loop"}),
    "/file": (302, {"location": "file:///etc/hostname"}),
}


class Server(ThreadingHTTPServer):
    """A server, or a proxy for http, that remembers who asked for what."""

    daemon_threads = True

    def __init__(self, pages: Mapping[str, tuple[int, dict[str, str]]] = PAGES) -> None:
        self.pages = pages
        self.asked: list[str] = []
        self.authorizations: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.authorizations.append(self.headers.get("authorization"))
        status, headers = self.server.pages.get(self.path, (200, {}))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(f"body of {self.path}".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def start() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


@pytest.fixture
def server(start: ExitStack) -> Server:
    return start.enter_context(serving(Server()))


@pytest.fixture
def proxy(start: ExitStack) -> Server:
    return start.enter_context(serving(Server()))


@pytest.mark.parametrize(
    ("path", "status", "ok"), [("/", 200, True), ("/absent", 404, False), ("/broken", 503, False)]
)
def test_any_status_is_an_answer(server: Server, path: str, status: int, ok: bool) -> None:
    answer = get(server.url + path, timeout=5, limit=100)
    assert (answer, answer.ok) == (Answer(status, f"body of {path}".encode()), ok)


def test_no_more_of_a_body_is_read_than_asked_for(server: Server) -> None:
    assert get(server.url, timeout=5).body == b""
    assert get(server.url, timeout=5, limit=4).body == b"body"


def test_an_answer_whose_body_never_comes_is_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            caller, _ = listening.accept()
            caller.recv(10_000)
            caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            with caller:
                caller.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        assert get(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30).status == 200


def test_a_server_that_says_nothing_is_no_answer_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(NoAnswerError, match="timed out"),
    ):
        get(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.2)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9",
        "http://nosuch.invalid",
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://a..b/",
        "http://" + "a" * 70 + ".example",
        "http://",
        "wandb",
        "",
        "file:///etc/hostname",
    ],
)
def test_where_no_server_can_answer_the_reason_is_told(url: str) -> None:
    with pytest.raises(NoAnswerError, match=r"\w"):
        get(url, timeout=5)


def test_a_redirect_is_followed_and_one_that_never_ends_is_an_answer(
    server: Server, start: ExitStack
) -> None:
    moved = start.enter_context(serving(Server({"/": (301, {"location": f"{server.url}/absent"})})))
    assert get(moved.url, timeout=5).status == 404
    assert get(f"{server.url}/loop", timeout=5).status == 302
    with pytest.raises(NoAnswerError):
        get(f"{server.url}/file", timeout=5)


def test_a_token_is_not_sent_to_the_server_that_another_one_names(server: Server, start: ExitStack) -> None:
    moved = start.enter_context(serving(Server({"/": (302, {"location": server.url})})))
    get(moved.url, timeout=5, headers={"authorization": "Bearer secret"})
    assert moved.authorizations == ["Bearer secret"]
    assert server.authorizations == [None]


def test_servers_of_this_machine_are_asked_without_a_proxy(
    server: Server, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    for host in ("127.0.0.1", "localhost"):
        assert get(server.url.replace("127.0.0.1", host), timeout=5).ok
    assert not proxy.asked


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_other_servers_are_asked_through_the_proxy(
    proxy: Server, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url.replace("http://", scheme))
    assert get("http://wandb.invalid/", timeout=5).ok
    assert proxy.asked == ["http://wandb.invalid/"]


@pytest.mark.parametrize(
    "exception", ["wandb.invalid", ".invalid", "*", "10.0.0.0/8, fe80::/10, wandb.invalid"]
)
def test_exceptions_from_the_proxy_count(
    proxy: Server, monkeypatch: pytest.MonkeyPatch, exception: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", exception)
    with pytest.raises(NoAnswerError):
        get("http://wandb.invalid/", timeout=5)
    assert not proxy.asked


def test_a_socks_proxy_for_other_schemes_changes_nothing(
    server: Server, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:secret@127.0.0.1:9")
    assert get(server.url, timeout=5).ok
    monkeypatch.setenv("http_proxy", proxy.url)
    assert get("http://wandb.invalid/", timeout=5).ok


@pytest.mark.parametrize("scheme", ["socks5", "socks4", "http"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("http_proxy", f"{scheme}://user:secret@127.0.0.1:9")
    with pytest.raises(NoAnswerError) as raised:
        get("http://wandb.invalid/", timeout=5)
    assert "secret" not in str(raised.value)


def test_certificates_are_checked_against_those_of_the_system_unless_told_not_to(
    start: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject,
         "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    tls = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    tls.socket = context.wrap_socket(tls.socket, server_side=True)
    tls.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    url = start.enter_context(serving(tls)).url.replace("http:", "https:")
    with pytest.raises(NoAnswerError, match="CERTIFICATE_VERIFY_FAILED"):
        get(url, timeout=5)
    assert get(url, timeout=5, verify=False).ok
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(url, timeout=5).ok
