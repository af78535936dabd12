"""Reading what clients send: as much as an endpoint takes, in bounded time, and all of them together in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from harness.errors import (
    BodyTooLargeError,
    InvalidInputError,
    RateLimitedError,
    RequestTimeoutError,
    UnsupportedMediaError,
)

#: Bodies that are held at a time, in bytes, of all requests together.
TOTAL_BYTES = 256 * 1024 * 1024
#: What is never read is thrown away for as long as this, so that the client gets to see the answer.
LINGER_SECONDS = 2.0


class Bodies:
    """The bodies that one server holds."""

    def __init__(self, *, timeout_seconds: float, total_bytes: int = TOTAL_BYTES) -> None:
        """Begin with none.

        Args:
            timeout_seconds: How long one may take to come.
            total_bytes: How much may be held at a time.
        """
        self._total_bytes = total_bytes
        self._timeout_seconds = timeout_seconds
        #: What is held now.
        self.held_bytes = 0

    @asynccontextmanager
    async def reading(self, request: web.Request, max_bytes: int) -> AsyncIterator[bytes]:
        """Read a request's body; it counts as held until the block is left.

        Raises:
            BodyTooLargeError: It is larger than `max_bytes`.
            RateLimitedError: The server holds too much already.
            RequestTimeoutError: It did not come in time.
            InvalidInputError: It broke off.
        """
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await _say_go_on(request)
                    while piece := await request.content.readany():
                        self.held_bytes += len(piece)
                        body += piece
                        self._check(len(body), max_bytes)
            except TimeoutError:
                raise RequestTimeoutError(
                    f"the body did not come within {self._timeout_seconds:g} s; send it at once"
                ) from None
            except (HttpProcessingError, web.RequestPayloadError, ConnectionError) as error:
                raise InvalidInputError(
                    "the body broke off, or is not framed as HTTP asks; send it again"
                ) from error
            yield bytes(body)
        finally:
            self.held_bytes -= len(body)

    def _check(self, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise _too_large(max_bytes)
        if self.held_bytes > self._total_bytes:
            raise RateLimitedError(
                f"requests with more than {self._total_bytes:,} bytes of body are under way; try again",
                retry_after_seconds=1.0,
            )


BODIES = web.AppKey("bodies", Bodies)


def check_body(request: web.Request, max_bytes: int) -> None:
    """Refuse a body by what the headers say of it, before any of it is read.

    Raises:
        UnsupportedMediaError: It is encoded: what it unfolds to has no bound.
        BodyTooLargeError: It is larger than `max_bytes`.
    """
    for encoding in request.headers.getall("Content-Encoding", []):
        if encoding.strip().lower() != "identity":
            raise UnsupportedMediaError(f"the body has Content-Encoding {encoding[:40]!r}; send it as it is")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)


async def expect(_request: web.Request) -> None:
    """Say nothing yet to an Expect header (RFC 9110, 10.1.1): ``100 Continue`` comes when the body is wanted."""


async def _say_go_on(request: web.Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # It is no part of the answer, whose writer would take itself for begun.
        request.writer.output_size = 0


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes:,} bytes; send less")
