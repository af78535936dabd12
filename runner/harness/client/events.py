"""Server-sent events read to their end: over lost connections, and without an event twice or left out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp

from harness.client.transport import Transport
from harness.errors import HarnessError, ServerUnavailableError

#: How long a server may be away, in seconds: before it has answered once, and later, when a reader should outlast its
#: restart.
FIRST_AWAY_SECONDS, MAX_AWAY_SECONDS = 3.0, 60.0
#: Pauses before a new try: the first, and the longest, in seconds.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.1, 5.0
#: The server sends something at least every 10 s. A connection that is silent for this long is dead, in seconds.
SILENCE_SECONDS = 30.0


async def read_events(
    transport: Transport, path: str, query: Mapping[str, Any], *, after: int
) -> AsyncGenerator[tuple[str, bytes], None]:
    """Yield events by name with their data, until the one that is named ``end``.

    Args:
        transport: To the server.
        path: Of the stream.
        query: Asked for each time.
        after: Go on after the event with this id.

    Raises:
        HarnessError: What the server says.
        ServerUnavailableError: It stays away.
    """
    loop = asyncio.get_running_loop()
    headers = {"Accept": "text/event-stream"}
    away_since: float | None = None
    has_answered = False
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            async with transport.stream(
                "GET", path, query=query, headers={**headers, "Last-Event-ID": str(after)}, total_seconds=None,
                silence_seconds=SILENCE_SECONDS,
            ) as answer:  # fmt: skip
                has_answered = True
                if answer.status == 204:
                    return
                async for seq, name, data in _parse(answer.content):
                    after, away_since, pause = seq, None, FIRST_PAUSE_SECONDS
                    if name == "dropped":
                        break
                    yield name, data
                    if name == "end":
                        return
        except (aiohttp.ClientError, TimeoutError):
            pass  # the connection broke; what was read whole counts
        except HarnessError as error:
            is_away = isinstance(error, ServerUnavailableError) or error.retry_after_seconds is not None
            now = loop.time()
            away_since = now if away_since is None else away_since
            if not is_away or now - away_since > (MAX_AWAY_SECONDS if has_answered else FIRST_AWAY_SECONDS):
                raise
        # Spread, so that all readers of a server that stopped do not come back at the same moment.
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        pause = min(2 * pause, LAST_PAUSE_SECONDS)


async def _parse(content: aiohttp.StreamReader) -> AsyncIterator[tuple[int, str, bytes]]:
    """Yield the id, name and data of each event that came whole. Reads what our server writes: one line of data."""
    buffer = bytearray()
    async for piece in content.iter_any():
        buffer += piece
        if b"\n\n" not in buffer[-len(piece) - 1 :]:
            continue
        *blocks, rest = bytes(buffer).split(b"\n\n")
        buffer = bytearray(rest)
        for block in blocks:
            fields = dict(
                line.split(b": ", 1) for line in block.split(b"\n") if line[:1] != b":" and b": " in line
            )
            if b"data" in fields:
                yield int(fields[b"id"]), fields[b"event"].decode(), fields[b"data"]
