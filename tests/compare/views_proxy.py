"""A proxy of the embedded server that adds what it lacks: saved views."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass
class ViewsProxy:
    url: str = ""
    views: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each upsertView."""
    curves: int = 0
    """Requests for curves."""


@contextmanager
def views_proxy(target: str) -> Iterator[ViewsProxy]:
    proxy = ViewsProxy()
    client = httpx.Client(base_url=target, timeout=60)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(body)
            proxy.curves += "sampledHistory" in request["query"]
            if "upsertView" in request["query"]:
                proxy.views.append(request["variables"])
                view = {"view": {"id": "dmlldzox", "name": request["variables"]["name"]}, "inserted": True}
                self.answer(200, json.dumps({"data": {"upsertView": view}}).encode())
                return
            headers = {"Authorization": self.headers["Authorization"], "Content-Type": "application/json"}
            answer = client.post(self.path, content=body, headers=headers)
            self.answer(answer.status_code, answer.content)

        def do_GET(self) -> None:
            self.answer(200, b"")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
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
