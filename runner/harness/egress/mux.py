"""`RelayLink`: the runner's end of a relay: many connections over one pair of streams, none of which holds up the others.

The relay is ours and the agent can't touch it, but it stands beside code that nobody has read. So it is trusted with
nothing: a frame that it can't have sent ends it and all its connections, and what it makes the runner hold is bounded by
`MAX_CONNECTIONS` windows, whatever it sends and however little it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from harness.egress.frames import (
    CUT,
    DATA,
    END,
    MAX_PAYLOAD_BYTES,
    OPEN,
    READY,
    WINDOW_BYTES,
    BadFrameError,
    Decoder,
    Frame,
    encode,
    encode_ack,
)

logger = logging.getLogger(__name__)

#: Connections of one relay at a time. The relay has the same bound, so one that opens more is none of ours.
MAX_CONNECTIONS = 64
#: Frames that are looked at before others get their turn.
FRAMES_AT_ONCE = 32
#: Connections that may be opened at once, and how many more each second: each costs the runner a part of a millisecond, and
#: its neighbours share the runner. A relay of ours keeps within that by itself; any other waits with all it has.
OPEN_BURST = 128
OPENS_PER_SECOND = 100.0
#: Connections of one relay that are open or being taken down.
MAX_TASKS = 2 * MAX_CONNECTIONS


class Pipe(Protocol):
    """The relay's stdin and stdout."""

    async def read(self) -> bytes:
        """Return what the relay wrote next; nothing at its end."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    async def drain(self) -> None:
        """Wait while too much that was sent has not been taken. Raises `OSError` when the relay is gone."""


class Connection:
    """One connection that a program in the sandbox made."""

    def __init__(self, number: int, pipe: Pipe) -> None:
        self.number = number
        self._pipe = pipe
        self._incoming = bytearray()
        #: Bytes that the relay may still send, and that it may still be sent.
        self._window = WINDOW_BYTES
        self._credit = WINDOW_BYTES
        self._changed = asyncio.Event()
        self._has_ended = False
        self.has_answered = False
        self.is_cut = False

    @property
    def is_over(self) -> bool:
        """Whether neither side sends any more."""
        return self.is_cut or (self._has_ended and self.has_answered)

    async def read(self) -> bytes:
        """Return what the program sent next, at most `MAX_PAYLOAD_BYTES`; nothing once it sends no more.

        Raises:
            ConnectionResetError: The connection was cut.
        """
        while not self._incoming and not self._has_ended:
            await self._until_changed()
        self._check()
        data = bytes(self._incoming[:MAX_PAYLOAD_BYTES])
        if data:
            del self._incoming[:MAX_PAYLOAD_BYTES]
            if not self._has_ended:
                self._window += len(data)
                self._pipe.write(encode_ack(self.number, len(data)))
                await self._pipe.drain()
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes to the program; returns when there is room for more.

        Raises:
            ConnectionResetError: The connection was cut.
            OSError: The relay is gone.
        """
        view = memoryview(data)
        while view:
            while not self._credit:
                await self._until_changed()
            self._check()
            count = min(len(view), self._credit, MAX_PAYLOAD_BYTES)
            self._credit -= count
            self._pipe.write(encode(DATA, self.number, bytes(view[:count])))
            view = view[count:]
            await self._pipe.drain()

    def end(self) -> None:
        """Send no more."""
        if not self.has_answered and not self.is_cut:
            self.has_answered = True
            self._pipe.write(encode(END, self.number))

    def cut(self) -> None:
        """End it now, in both directions, unless it is over."""
        if not self.is_over:
            self.lose()
            self._pipe.write(encode(CUT, self.number))

    async def until_delivered(self) -> None:
        """Return once the program was given all that was sent, or sends no more itself."""
        while not self._has_ended and self._credit < WINDOW_BYTES:
            await self._until_changed()

    # What the relay says

    def lose(self) -> None:
        """Take it that the program is gone."""
        self.is_cut = True
        self._incoming.clear()
        self._changed.set()

    def take(self, data: bytes) -> None:
        """Take what the program sent."""
        if self._has_ended or len(data) > self._window:
            raise BadFrameError(f"{len(data)} bytes for connection {self.number}, which has no room for them")
        self._window -= len(data)
        self._incoming += data
        self._changed.set()

    def take_ack(self, count: int) -> None:
        """Take it that the program was given bytes."""
        if count > WINDOW_BYTES - self._credit:
            raise BadFrameError(f"{count} bytes taken of connection {self.number}, which were never sent")
        self._credit += count
        self._changed.set()

    def take_end(self) -> None:
        """Take it that the program sends no more."""
        if self._has_ended:
            raise BadFrameError(f"a second end of connection {self.number}")
        self._has_ended = True
        self._changed.set()

    def _check(self) -> None:
        if self.is_cut:
            raise ConnectionResetError("the program in the sandbox closed the connection")

    async def _until_changed(self) -> None:
        self._check()
        self._changed.clear()
        # Both directions may wait at the same time, and each looks for itself what has changed.
        await self._changed.wait()
        self._check()


Serve = Callable[[Connection], Awaitable[None]]


class RelayLink:
    """Reads what a relay sends, and has each of its connections served by a task of its own."""

    def __init__(self, pipe: Pipe, serve: Serve) -> None:
        """Speak to a relay over `pipe`; `serve` is called for each connection, and ends it."""
        self._pipe = pipe
        self._serve = serve
        self._decoder = Decoder()
        self._connections: dict[int, Connection] = {}
        #: By the connection that each serves; a connection that is over may still have one for a moment.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._last_number = 0
        self._opens = float(OPEN_BURST)
        self._opened_at = 0.0

    async def until_ready(self) -> None:
        """Return once the relay listens.

        Raises:
            BadFrameError: It says something else, or ended.
        """
        while (frame := self._decoder.take()) is None:
            data = await self._pipe.read()
            if not data:
                raise BadFrameError("it ended before it listened")
            self._decoder.feed(data)
        if frame != Frame(READY, 0):
            raise BadFrameError("it did not say that it listens")

    async def run(self) -> None:
        """Carry connections until the relay ends; whatever ends this, they are all over then.

        Raises:
            BadFrameError: The relay sent what none of ours sends.
        """
        count = 0
        try:
            while True:
                while (frame := self._decoder.take()) is not None:
                    if frame.kind == OPEN:
                        await self._pace()
                    self._obey(frame)
                    count += 1
                    if count % FRAMES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                data = await self._pipe.read()
                if not data:
                    return
                self._decoder.feed(data)
                # A read that finds data waiting lets nobody else run.
                await asyncio.sleep(0)
        finally:
            await self._end_all()

    async def _end_all(self) -> None:
        for connection in self._connections.values():
            connection.lose()
        self._connections.clear()
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        gained = (loop.time() - self._opened_at) * OPENS_PER_SECOND
        self._opens = min(OPEN_BURST, self._opens + gained)
        self._opened_at = loop.time()
        if self._opens < 1:
            await asyncio.sleep((1 - self._opens) / OPENS_PER_SECOND)
        self._opens -= 1
        while len(self._tasks) >= MAX_TASKS:
            await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)

    def _obey(self, frame: Frame) -> None:
        if frame.kind == OPEN:
            self._open(frame.connection)
            return
        if frame.kind == READY or not 1 <= frame.connection <= self._last_number:
            raise BadFrameError(f"a frame of the kind {frame.kind!r} for connection {frame.connection}")
        connection = self._connections.get(frame.connection)
        if connection is None or connection.is_over:
            return  # it was under way when the connection came to its end
        if frame.kind == DATA:
            connection.take(frame.payload)
        elif frame.kind == END:
            connection.take_end()
        elif frame.kind == CUT:
            connection.lose()
            # It may be waiting for somebody else.
            self._tasks[frame.connection].cancel()
        else:
            connection.take_ack(int.from_bytes(frame.payload, "big"))

    def _open(self, number: int) -> None:
        # Those that are over and whose task just has not come to see it take no room at the relay.
        live = sum(not connection.is_over for connection in self._connections.values())
        if number != self._last_number + 1 or live >= MAX_CONNECTIONS:
            raise BadFrameError(f"connection {number} after {self._last_number}, {live} being open")
        self._last_number = number
        connection = self._connections[number] = Connection(number, self._pipe)
        task = self._tasks[number] = asyncio.create_task(self._carry(connection))
        task.add_done_callback(lambda done: self._forget(number, done))

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        # Also of a task that was cancelled before it began.
        self._connections.pop(number, None)
        del self._tasks[number]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a connection of a sandbox was dropped: %r", error, exc_info=error)

    async def _carry(self, connection: Connection) -> None:
        try:
            # The relay, the program, or the pipe to them is gone.
            with contextlib.suppress(OSError):
                await self._serve(connection)
        finally:
            connection.cut()
