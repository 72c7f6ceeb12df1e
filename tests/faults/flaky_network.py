"""A proxy between an agent and its server that simulates a network in bad condition."""

import random
import socket
import threading
import time
from contextlib import suppress
from enum import StrEnum


class NetworkCondition(StrEnum):
    """What happens to connections."""

    NORMAL = "normal"
    SLOW = "slow"
    """Each piece of data is delayed by a quarter of a second."""
    REFUSED = "refused"
    """New connections are refused, and open ones closed."""
    BLACK_HOLE = "black hole"
    """Connections are accepted, and never answered."""
    TRUNCATED = "truncated"
    """Connections close in the middle of their data."""
    BAD_GATEWAY = "bad gateway"
    """The answer is HTTP 502, as from a gateway that cannot reach the server."""


class FlakyProxy:
    """Forwards connections to `port` of this computer, as the condition of the network allows."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._reserved = self._bound(0)  # keeps the port from other programs while connections are refused
        self.port = int(self._reserved.getsockname()[1])
        self._listener = self._listen()
        self.condition = NetworkCondition.NORMAL
        self._open: set[socket.socket] = set()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_condition(self, condition: NetworkCondition) -> None:
        """Change the condition, also of open connections."""
        self.condition = condition
        if condition is NetworkCondition.REFUSED:
            # At once: a thread that waits in accept would keep a closed socket listening, and its port taken.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        elif self._listener.fileno() < 0:
            self._listener = self._listen()
        if condition is not NetworkCondition.NORMAL:
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ended = True
        self.set_condition(NetworkCondition.REFUSED)
        self._reserved.close()

    def _bound(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def _listen(self) -> socket.socket:
        listener = self._bound(self.port)
        listener.listen(64)
        listener.settimeout(0.2)
        return listener

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                time.sleep(0.05)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.condition is NetworkCondition.BLACK_HOLE:
                self._open.add(client)
                while self.condition is NetworkCondition.BLACK_HOLE and not self._ended:
                    time.sleep(0.1)
                return
            if self.condition is NetworkCondition.BAD_GATEWAY:
                with suppress(OSError):
                    client.recv(65536)
                    client.sendall(
                        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                return
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._target), 10) as server:
                self._open |= {client, server}
                back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                back.start()
                self._pass_on(client, server)
                back.join()
            self._open -= {client}

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.condition is NetworkCondition.SLOW:
                    time.sleep(0.25)
                if self.condition is NetworkCondition.TRUNCATED and random.random() < 0.5:
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
