"""A network between an agent and its server that can be taken away."""

import random
import socket
import threading
import time
from contextlib import suppress
from enum import StrEnum


class Weather(StrEnum):
    """What the network does."""

    FINE = "fine"
    SLOW = "slow"
    """Every piece takes a quarter of a second."""
    REFUSED = "refused"
    """Nobody listens any more; open connections are cut."""
    SILENT = "silent"
    """Connections are taken, and nothing comes back."""
    CUT = "cut"
    """Connections break after some bytes."""
    BAD_GATEWAY = "bad gateway"
    """A proxy answers in the server's place: 502."""


class Proxy:
    """Passes connections on to `port` of this machine, as the weather allows."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._held = self._bound(0)  # nobody else gets the port while nobody listens on it
        self.port = int(self._held.getsockname()[1])
        self._listener = self._listen()
        self.weather = Weather.FINE
        self._open: set[socket.socket] = set()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def turn(self, weather: Weather) -> None:
        """Change the weather, also for those who are under way."""
        self.weather = weather
        if weather is Weather.REFUSED:
            self._listener.close()
        elif self._listener.fileno() < 0:
            self._listener = self._listen()
        if weather is not Weather.FINE:
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ended = True
        self.turn(Weather.REFUSED)
        self._held.close()

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
            if self.weather is Weather.SILENT:
                self._open.add(client)
                while self.weather is Weather.SILENT and not self._ended:
                    time.sleep(0.1)
                return
            if self.weather is Weather.BAD_GATEWAY:
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
                if self.weather is Weather.SLOW:
                    time.sleep(0.25)
                if self.weather is Weather.CUT and random.random() < 0.5:
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
