"""A proxy in front of the real server that counts requests, and may reject or answer them itself."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP_BY_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}


@dataclass(frozen=True)
class Refusal:
    """Answers 429 instead of the server."""

    kind: str
    """Of the requests that it is for."""
    times: int
    """How many it answers."""
    retry_after: int
    """Seconds, in the header of that name."""


@dataclass
class Proxy:
    """The requests that passed through the proxy."""

    target: str
    url: str = ""
    seen: list[tuple[float, str]] = field(default_factory=list)
    """Time and kind of each request, including rejected ones."""
    refused: list[tuple[float, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    """Put on every answer."""
    key_is_good: bool = True
    """Otherwise the answer to every request is 401."""
    reply: Callable[[str, bytes], bytes | None] = lambda path, body: None
    """Answers a request with 200 instead of the server, unless it returns None."""
    _refusals: list[Refusal] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def counts(self) -> Counter[str]:
        """Requests by kind: the GraphQL operation, or what the path says."""
        return Counter(kind for _, kind in self.seen)

    def refuse(self, kind: str, times: int, retry_after: int) -> None:
        """Answer the next requests of a kind with 429."""
        with self._lock:
            self._refusals.append(Refusal(kind, times, retry_after))

    def refusal(self, kind: str) -> Refusal | None:
        """Record a request; returns how to reject it, or None."""
        with self._lock:
            self.seen.append((time.monotonic(), kind))
            for refusal in self._refusals:
                if refusal.kind == kind and sum(k == kind for _, k in self.refused) < refusal.times:
                    self.refused.append((time.monotonic(), kind))
                    return refusal
        return None


def kind_of(path: str, body: bytes) -> str:
    """The operation of a GraphQL request, or the kind of file request."""
    if path.endswith("/graphql"):
        query = json.loads(body)["query"]
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        return found[1] if found else "unnamed"
    for kind in ("file_stream", "otel"):
        if kind in path:
            return kind
    return "file" if "/files/" in path or "/storage" in path or "upload" in path else path


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """A proxy on a free port."""
    proxy = Proxy(target)
    client = httpx.Client(timeout=60)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not proxy.key_is_good:
                self._answer(401, {}, b"user is not logged in")
                return
            refusal = proxy.refusal(kind_of(self.path, body))
            if refusal:
                self._answer(429, {"Retry-After": str(refusal.retry_after)}, b"slow down")
                return
            instead = proxy.reply(self.path, body)
            if instead is not None:
                self._answer(200, {"Content-Type": "application/json"}, instead)
                return
            sent = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            answer = client.request(self.command, proxy.target + self.path, headers=sent, content=body)
            self._answer(answer.status_code, {**answer.headers, **proxy.headers}, answer.content)

        do_GET = do_POST = do_PUT = do_HEAD = _forward

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {*HOP_BY_HOP, "content-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        client.close()
