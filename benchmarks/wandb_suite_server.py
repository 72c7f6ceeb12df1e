"""The embedded server with as many users as wandb's tests create.

wandb's tests create a user for each test, who is also the entity and whose name is the API key. The embedded
server has one user and one key. So an unchanged server runs behind a layer that takes every created name for
the server's own key, and calls its one user by that name.

`python benchmarks/wandb_suite_server.py HOME` prints the port, and serves until it is ended.
"""

import base64
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import Response

from kto_sweep.home import Home
from kto_sweep.server import listen
from kto_sweep.server.app import build_app
from kto_sweep.server.listen import ListenOptions
from kto_sweep.server.main import open_server_state
from kto_sweep.server.resolvers import viewer

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

CREATE_USER = "/db/user"
"""The path at which wandb's fixtures create a user."""
_user: ContextVar[str] = ContextVar("user", default="")


class Users:
    """Lets created users in with their name as key."""

    def __init__(self, app: App, key: str) -> None:
        self._app = app
        self._key = base64.b64encode(f"api:{key}".encode())
        self._names: dict[bytes, str] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/db/"):
            await (await self._change(Request(scope, receive)))(scope, receive, send)
            return
        scope["headers"] = [self._with_own_key(name, value) for name, value in scope["headers"]]
        await self._app(scope, receive, send)

    async def _change(self, request: Request) -> Response:
        command = await request.json()
        if request.url.path != CREATE_USER:
            return Response("this server has neither teams nor organizations", 501)
        name = command["username"]
        sent = base64.b64encode(f"api:{name}".encode())
        if command["command"] == "up":
            self._names[sent] = name
        elif command["command"] == "down":
            self._names.pop(sent, None)
        return Response()

    def _with_own_key(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        if name == b"authorization":
            kind, _, sent = value.partition(b" ")
            if user := self._names.get(sent):
                _user.set(user)
                return name, kind + b" " + self._key
        return name, value


def _named_after_the_test() -> dict[str, Any]:
    """The one user, under the name of the test's user."""
    user = _local_user()
    name = _user.get() or user["username"]
    return user | {
        "name": name,
        "username": name,
        "entity": name,
        "admin": False,
        "api_keys": {"edges": [{"node": {"id": name[:20], "name": name[:20]}}]},
        "teams": {"edges": [{"node": viewer.named_entity(name)}]},
    }


_local_user = viewer.local_user


def main() -> None:
    home = Home(Path(sys.argv[1]))
    home.server.mkdir(parents=True)
    viewer.local_user = _named_after_the_test
    with open_server_state(home) as server, listen.bind(home, ListenOptions(port=0)) as bound:
        app = Users(
            build_app(server, {"service": "kto-sweep"}, https=False, open_on_loopback=False), server.key
        )
        print(json.dumps({"port": bound.getsockname()[1]}), flush=True)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75
        )
        uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main()
