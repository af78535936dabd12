"""Answers that go on for long: server-sent events and plain text, to many readers, some of them slow.

What is sent comes from the store, at each reader's own pace, so a slow one costs what its socket holds and nothing else.
One that takes too little for `WRITE_SECONDS` is dropped, since it holds a place; a reader of events is told where to go
on (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from harness.errors import InvalidInputError, RateLimitedError

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
#: Streams that one server serves at a time.
MAX_STREAMS = 500
#: A comment is sent after this long without an event, so that nothing in between takes the connection for dead.
HEARTBEAT_SECONDS = 10.0
#: How long a reader may take for one piece, 64 KiB of text at most.
WRITE_SECONDS = 10.0
#: How long the connection of a dropped reader stays for what was sent.
LINGER_SECONDS = 30.0
#: Readers whose next piece is made ready in one turn of the event loop; hundreds at once would hold it for a second, and the
#: runs of the same server with it.
READERS_PER_TURN = 4
#: Between two looks whether a reader is still there, in seconds.
LOOK_SECONDS = 0.25
#: When a reader that was cut off comes back, in milliseconds.
RETRY_MILLIS = 1000

_LARGEST_ID = 2**53

EventT = TypeVar("EventT")
MadeT = TypeVar("MadeT")


@dataclass(frozen=True, slots=True)
class Frame:
    """One event as it is sent."""

    id: int
    event: str
    #: JSON, and so without line ends.
    data: str

    def encode(self) -> bytes:
        """Return its lines."""
        return f"id: {self.id}\nevent: {self.event}\ndata: {self.data}\n\n".encode()


class Streams:
    """The streams of one server."""

    def __init__(self, *, max_streams: int = MAX_STREAMS) -> None:
        """Begin with none.

        Args:
            max_streams: How many there may be at a time.
        """
        self._max_streams = max_streams
        self._stopping = asyncio.Event()
        self._turns = asyncio.Semaphore(READERS_PER_TURN)
        #: How many there are now.
        self.count = 0

    def stop(self) -> None:
        """End all streams of events now; their readers go on elsewhere, or here once it is up again."""
        self._stopping.set()

    async def send_events(
        self,
        request: web.Request,
        events: AsyncIterator[EventT],
        *,
        frame: Callable[[EventT], Frame],
        dropped: Callable[[int], Frame],
        last_id: int,
    ) -> web.StreamResponse:
        """Send events until they end, the reader is gone or too slow, or the server stops.

        Args:
            request: Whose answer it is.
            events: What to send.
            frame: Renders an event.
            dropped: Renders what a dropped reader is told, from the id of the last event it was sent.
            last_id: Of the last event that the reader has.

        Raises:
            RateLimitedError: The server has no place for one more stream; nothing was sent.
        """
        headers = {"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}
        async with self._reader(request, headers) as reader:
            await reader.write(f"retry: {RETRY_MILLIS}\n\n".encode())
            try:
                async with contextlib.aclosing(self._paced(reader, events)) as paced:
                    async for event in paced:
                        shown = await self._in_turn(functools.partial(frame, event))
                        last_id = shown.id
                        await reader.write(shown.encode())
            except _TooSlowError:
                logger.info("a reader of events was too slow", extra={"action": "reader_dropped"})
                await reader.end(dropped(last_id).encode())
        return reader.response

    async def send_text(
        self, request: web.Request, pieces: AsyncIterator[str], *, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Send text as UTF-8; a reader that is too slow is cut off, which shows as a body that is not complete.

        Raises:
            RateLimitedError: The server has no place for one more stream; nothing was sent.
        """
        plain = {"Content-Type": "text/plain; charset=utf-8"}
        async with self._reader(request, {**plain, **headers}) as reader:
            async for piece in pieces:
                data = await self._in_turn(functools.partial(piece.encode, errors="replace"))
                await reader.write(data)
        return reader.response

    async def _in_turn(self, make: Callable[[], MadeT]) -> MadeT:
        async with self._turns:
            # Whoever else is ready goes between: what is held here is held until the event loop's next turn.
            await asyncio.sleep(0)
            return make()

    @contextlib.asynccontextmanager
    async def _reader(self, request: web.Request, headers: Mapping[str, str]) -> AsyncIterator[_Reader]:
        with self._place():
            reader = _Reader(request, headers)
            try:
                await reader.begin()
                yield reader
            except ConnectionError:
                pass  # it is gone
            except _TooSlowError:
                reader.abort()
            except BaseException:
                # Half an answer can't be turned into a problem document, only be seen to be no whole one.
                reader.abort()
                raise

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self.count >= self._max_streams:
            raise RateLimitedError(
                f"this server serves {self._max_streams} streams already, which is its limit; end some, or ask another "
                "server on the same store"
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    async def _paced(self, reader: _Reader, events: AsyncIterator[EventT]) -> AsyncGenerator[EventT, None]:
        """Yield events, with heartbeats when there are none, while the reader is there and the server serves."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        coming: asyncio.Future[EventT] | None = None
        quiet_seconds = 0.0
        try:
            while reader.is_connected and not stopping.done():
                coming = coming or asyncio.ensure_future(anext(events))
                await asyncio.wait(
                    (coming, stopping), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                quiet_seconds += LOOK_SECONDS
                if coming.done():
                    event, coming = coming, None
                    quiet_seconds = 0.0
                    yield event.result()
                elif quiet_seconds >= HEARTBEAT_SECONDS:
                    quiet_seconds = 0.0
                    await reader.write(b":\n\n")
        except StopAsyncIteration:
            return
        finally:
            left: list[asyncio.Future[Any]] = [stopping] if coming is None else [stopping, coming]
            for future in left:
                future.cancel()
            await asyncio.gather(*left, return_exceptions=True)


class _TooSlowError(Exception):
    """A reader took too little for too long."""


class _Reader:
    """Who reads a stream."""

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self._transport = request.transport
        self.response = web.StreamResponse(headers=headers)
        # However it ends, the connection carries nothing else afterwards.
        self.response.force_close()

    @property
    def is_connected(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def begin(self) -> None:
        await self.response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self.response.write(data)
        except TimeoutError:
            raise _TooSlowError from None

    async def end(self, data: bytes) -> None:
        """Send the last words to a reader that may not take them."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self.response.write(data)
                await self.response.write_eof()
        except TimeoutError:
            raise _TooSlowError from None
        # What is left in buffers now stays as long again at most.
        if self._transport is not None:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def accepts_events(request: web.Request) -> bool:
    """Return whether a request names `EVENT_STREAM` among what it accepts."""
    return EVENT_STREAM in request.headers.get("Accept", "").lower()


def last_event_id(request: web.Request, after: int) -> int:
    """Return where a reader goes on: after what its event source says it has seen, else after what its query says.

    Raises:
        InvalidInputError: The header is no id of ours.
    """
    text = request.headers.get("Last-Event-ID", "").strip(" \t")
    if not text:
        return after
    if not (text.isascii() and text.removeprefix("-").isdigit()) or not -1 <= int(text[:20]) <= _LARGEST_ID:
        raise InvalidInputError(f"the header Last-Event-ID is {text[:40]!r}; send the id of an event")
    return int(text[:20])
