"""Connections within bounds: how many there are, how long a request's head may take, and how long a reader may stall.

aiohttp bounds sizes and idle time, but a client that sends its headers byte by byte (slowloris), or that never reads its
answer, would hold a connection for as long as it likes. So each connection's protocol is wrapped in one that keeps the
time. When there is no room for a new connection, the one that has waited longest without a whole request makes room.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

#: How long a request's head may take, from its first byte or, on a new connection, from its beginning.
HEAD_SECONDS = 10.0
#: How long a connection may idle between requests; longer than clients keep theirs.
IDLE_SECONDS = 75.0
#: A client for which more waits than sockets hold has to read this many bytes each time.
STALL_BYTES = 64 * 1024
STALL_SECONDS = 60.0
#: How long a connection stays after its last answer, for that to be read.
LINGER_SECONDS = 1.0

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class Connections:
    """The connections of one server."""

    def __init__(
        self,
        *,
        max_connections: int,
        head_seconds: float = HEAD_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """Begin with none.

        Args:
            max_connections: How many there may be.
            head_seconds: See `HEAD_SECONDS`.
            idle_seconds: See `IDLE_SECONDS`.
            stall_seconds: See `STALL_SECONDS`.
        """
        self._max_connections = max_connections
        self.head_seconds = head_seconds
        self.idle_seconds = idle_seconds
        self.stall_seconds = stall_seconds
        self._by_transport: dict[asyncio.BaseTransport, _Connection] = {}
        #: Those without a whole request, the longest waiting first.
        self._waiting: dict[_Connection, None] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._by_transport)

    def wrap(self, http: asyncio.Protocol) -> asyncio.Protocol:
        """Return the protocol of a new connection, on which `http` speaks."""
        return _Connection(self, http)

    def find(self, request: web.Request) -> _Connection | None:
        """Return the connection that a request came by, if it is still there."""
        transport = request.transport
        return None if transport is None else self._by_transport.get(transport)

    def admit(self, connection: _Connection, transport: asyncio.Transport) -> bool:
        """Take a connection in, if need be in the place of another; whether there was room."""
        if len(self._by_transport) >= self._max_connections:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            oldest.drop()
        self._by_transport[transport] = connection
        self.mark_waiting(connection)
        return True

    def forget(self, connection: _Connection, transport: asyncio.BaseTransport) -> None:
        """Let a connection go. Idempotent."""
        self._by_transport.pop(transport, None)
        self._waiting.pop(connection, None)

    def mark_waiting(self, connection: _Connection) -> None:
        """Count a connection among those that may have to make room."""
        self._waiting[connection] = None

    def mark_busy(self, connection: _Connection) -> None:
        """Count a connection among those that stay."""
        self._waiting.pop(connection, None)


CONNECTIONS = web.AppKey("connections", Connections)


@web.middleware
async def track_connections(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Stop the clock of a connection while its request is handled; the outermost middleware."""
    connection = request.app[CONNECTIONS].find(request)
    if connection is None:
        return await handler(request)
    connection.begin()
    try:
        return await handler(request)
    finally:
        connection.end()


class _Connection(asyncio.Protocol):
    def __init__(self, connections: Connections, http: asyncio.Protocol) -> None:
        self._connections = connections
        self._http = http
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_busy = False
        self._is_head_begun = False
        self._is_given_up = False
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        taken = cast("asyncio.Transport", transport)
        if not self._connections.admit(self, taken):
            taken.write(_FULL)
            taken.close()
            return
        self._transport = taken
        self._set_deadline(self._connections.head_seconds)
        self._http.connection_made(taken)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._is_given_up:
            return
        if not (self._is_busy or self._is_head_begun):
            self._is_head_begun = True
            self._set_deadline(self._connections.head_seconds)
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._transport is None else self._http.eof_received()

    def pause_writing(self) -> None:
        if self._transport is None:
            return
        self._watch_reader()
        self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._transport is None:
            return
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._http.resume_writing()

    def _watch_reader(self) -> None:
        assert self._transport is not None
        unread_bytes = self._transport.get_write_buffer_size()
        self._stall = self._loop.call_later(self._connections.stall_seconds, self._check_reader, unread_bytes)

    def _check_reader(self, unread_bytes: int) -> None:
        assert self._transport is not None
        if unread_bytes - self._transport.get_write_buffer_size() < STALL_BYTES:
            self.drop()
        else:
            self._watch_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        self._connections.forget(self, self._transport)
        self._cancel_deadline()
        if self._stall is not None:
            self._stall.cancel()
        self._transport = None
        self._http.connection_lost(exc)

    def begin(self) -> None:
        self._is_busy = True
        self._cancel_deadline()
        self._connections.mark_busy(self)

    def end(self) -> None:
        self._is_busy = self._is_head_begun = False
        if self._transport is not None:
            self._set_deadline(self._connections.idle_seconds)
            self._connections.mark_waiting(self)

    def drop(self) -> None:
        """Close now, whatever is still to be sent."""
        if self._transport is not None:
            # Its place is free at once; the event loop tells of the loss a moment later.
            self._connections.forget(self, self._transport)
            self._transport.abort()

    def _expire(self) -> None:
        assert self._transport is not None
        if not self._is_head_begun or self._transport.get_write_buffer_size():
            self.drop()
            return
        # Closed at once, with more of it coming in, the connection would be reset, and the answer perhaps never be read.
        self._is_given_up = True
        self._transport.write(_TIMEOUT)
        self._transport.write_eof()
        self._deadline = self._loop.call_later(LINGER_SECONDS, self.drop)

    def _set_deadline(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = self._loop.call_later(seconds, self._expire)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def http_logger() -> logging.Logger:
    """Return what aiohttp logs to: nothing of requests that are no HTTP.

    Whoever sends those must not fill the log; and aiohttp quotes the line at fault, which may be the one with the token.
    """
    logger = logging.getLogger("harness_server.http")
    logger.filters[:] = [_is_ours_to_mend]
    return logger


def _is_ours_to_mend(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)
