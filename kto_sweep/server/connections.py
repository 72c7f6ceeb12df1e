"""Limits of the server's connections: how many, and how long one may neither ask nor read.

request_body.py has the limit for one that does not send the rest of its request.
"""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 75
"""Seconds from a connection's start, or the end of its last response, until the next request's headers."""
READ_SECONDS = 75
"""Seconds in which a client must take at least one more byte of a response that waits for it."""
MAX_FILES = 65_536
"""Open files that the server asks the system for."""
RESERVED_FILES = 256
"""Of those, what is not for connections: the database, uploads and downloads."""
BACKLOG = 128
"""Connections that wait to be accepted. asyncio logs one error for each of these when no file is left."""


def raise_file_limit() -> int:
    """Raises the process's limit of open files as far as it may; how many connections fit into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(wanted if soft == resource.RLIM_INFINITY else soft, 2 * RESERVED_FILES) - RESERVED_FILES


def limited_protocol(max_connections: int) -> type[H11Protocol]:
    """uvicorn's protocol with deadlines for headers and readers, and at most this many connections.

    A new connection beyond them closes the one that has been without a request for longest.
    """
    # Without a request, the oldest first. All protocols run in one event loop.
    idle: dict[LimitedProtocol, asyncio.TimerHandle] = {}  # noqa: F821 - defined below

    class LimitedProtocol(H11Protocol):
        reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                next(iter(idle), self).abort()
            if not transport.is_closing():
                self.wait_for_request()

        def wait_for_request(self) -> None:
            idle[self] = self.loop.call_later(HEADERS_SECONDS, self.abort)

        def stop_waiting(self) -> None:
            if timer := idle.pop(self, None):
                timer.cancel()

        def abort(self) -> None:
            self.stop_waiting()
            self.transport.abort()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self.stop_waiting()

        def on_response_complete(self) -> None:
            self.stop_waiting()
            if not self.transport.is_closing():
                self.wait_for_request()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.wait_for_reader(self.transport.get_write_buffer_size())

        def resume_writing(self) -> None:
            self.stop_reading()
            super().resume_writing()

        def wait_for_reader(self, unsent: int) -> None:
            self.reading = self.loop.call_later(READ_SECONDS, self.check_reader, unsent)

        def check_reader(self, before: int) -> None:
            # While writing is paused nothing is added to what waits: less of it means that some was read.
            unsent = self.transport.get_write_buffer_size()
            if unsent < before:
                self.wait_for_reader(unsent)
            else:
                self.abort()

        def stop_reading(self) -> None:
            if self.reading:
                self.reading.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_waiting()
            self.stop_reading()
            super().connection_lost(exc)

    return LimitedProtocol
