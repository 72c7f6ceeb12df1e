"""Requests to servers that may not answer: the proxy, the certificates, and how much is read."""

import socket
import ssl
import subprocess
import threading
import time
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
    """A server, or an HTTP proxy, that records its requests."""

    daemon_threads = True

    def __init__(self, pages: Mapping[str, tuple[int, dict[str, str]]] = PAGES) -> None:
        self.pages = pages
        self.paths: list[str] = []
        self.authorizations: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
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
    assert (answer, answer.ok) == (Answer(status, f"body of {path}".encode(), answer.date), ok)
    assert answer.date == pytest.approx(time.time(), abs=60)


def test_a_body_is_read_up_to_the_limit(server: Server) -> None:
    assert get(server.url, timeout=5).body == b""
    assert get(server.url, timeout=5, limit=4).body == b"body"


def test_an_answer_whose_body_never_arrives_has_a_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            with connection:
                connection.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        assert get(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30).status == 200


def test_a_silent_server_times_out() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(NoAnswerError, match="timed out"),
    ):
        get(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)


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
def test_an_unreachable_address_gives_the_reason(url: str) -> None:
    with pytest.raises(NoAnswerError, match=r"\w"):
        get(url, timeout=5)


def test_a_redirect_is_followed_and_a_redirect_loop_is_an_answer(server: Server, start: ExitStack) -> None:
    redirecting = start.enter_context(serving(Server({"/": (301, {"location": f"{server.url}/absent"})})))
    assert get(redirecting.url, timeout=5).status == 404
    assert get(f"{server.url}/loop", timeout=5).status == 302
    with pytest.raises(NoAnswerError):
        get(f"{server.url}/file", timeout=5)


def test_a_token_is_not_sent_to_the_target_of_a_redirect(server: Server, start: ExitStack) -> None:
    redirecting = start.enter_context(serving(Server({"/": (302, {"location": server.url})})))
    get(redirecting.url, timeout=5, headers={"authorization": "Bearer secret"})
    assert redirecting.authorizations == ["Bearer secret"]
    assert server.authorizations == [None]


def test_local_servers_are_reached_without_the_proxy(
    server: Server, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    for host in ("127.0.0.1", "localhost"):
        assert get(server.url.replace("127.0.0.1", host), timeout=5).ok
    assert not proxy.paths


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_other_servers_are_reached_through_the_proxy(
    proxy: Server, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url.replace("http://", scheme))
    assert get("http://wandb.invalid/", timeout=5).ok
    assert proxy.paths == ["http://wandb.invalid/"]


@pytest.mark.parametrize(
    "no_proxy", ["wandb.invalid", ".invalid", "*", "10.0.0.0/8, fe80::/10, wandb.invalid"]
)
def test_hosts_in_no_proxy_are_reached_without_the_proxy(
    proxy: Server, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", no_proxy)
    with pytest.raises(NoAnswerError):
        get("http://wandb.invalid/", timeout=5)
    assert not proxy.paths


def test_a_socks_proxy_for_other_schemes_changes_nothing(
    server: Server, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:secret@127.0.0.1:9")
    assert get(server.url, timeout=5).ok
    monkeypatch.setenv("http_proxy", proxy.url)
    assert get("http://wandb.invalid/", timeout=5).ok


@pytest.mark.parametrize("scheme", ["socks5", "socks4", "http"])
def test_the_error_of_an_unusable_proxy_hides_its_password(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("http_proxy", f"{scheme}://user:secret@127.0.0.1:9")
    with pytest.raises(NoAnswerError) as raised:
        get("http://wandb.invalid/", timeout=5)
    assert "secret" not in str(raised.value)


def test_certificates_are_verified_unless_verify_is_false(
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
