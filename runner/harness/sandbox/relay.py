"""`Relay`: the container beside an agent's that is its way out, from its start to its end; see `harness.egress`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness.egress.decision import Decision, OnDecision, Verdict
from harness.egress.frames import BadFrameError
from harness.egress.gate import Gate, Outside
from harness.egress.mux import Connection, RelayLink
from harness.egress.policy import parse_rule
from harness.egress.proxy import serve_connection
from harness.errors import SandboxError
from harness.ports import SandboxSpec
from harness.sandbox.containers import Started

logger = logging.getLogger(__name__)

#: Bound on the time from a relay's start until it listens; usually it takes a tenth of a second.
READY_SECONDS = 15.0
#: Longest frame of the engine's attach stream that is taken; it cuts what a program writes into pieces of 32 KiB.
MAX_STREAM_FRAME_BYTES = 1 << 20
#: Of what a relay says on stderr, for the case that it fails.
KEPT_WORDS = 20


class _AttachedPipe:
    """A container's stdin and stdout as the engine carries them; see `harness.egress.mux.Pipe`."""

    def __init__(self, started: Started) -> None:
        self._reader, self._writer = started.reader, started.writer
        self._words: deque[str] = deque(maxlen=KEPT_WORDS)

    @property
    def words(self) -> str:
        """The end of what it said on stderr."""
        return " ".join(" ".join(self._words).split())[-300:]

    async def read(self) -> bytes:
        while True:
            try:
                header = await self._reader.readexactly(8)
                length = int.from_bytes(header[4:], "big")
                if length > MAX_STREAM_FRAME_BYTES:
                    raise BadFrameError(f"the engine announces {length} bytes at once")
                data = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return b""
            if header[0] == 1 and data:
                return data
            if header[0] != 1:
                self._words.append(data[-1000:].decode(errors="replace"))
                # One that writes there without end must not keep others from their turn.
                await asyncio.sleep(0)

    def write(self, data: bytes) -> None:
        if not self._writer.transport.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()


@asynccontextmanager
async def carrying(
    started: Started, spec: SandboxSpec, outside: Outside, on_decision: OnDecision
) -> AsyncIterator[None]:
    """Have a started relay carry connections to where the run may, until the block is left.

    Raises:
        SandboxError: It does not come to listen.
    """
    pipe = _AttachedPipe(started)
    gate = Gate([parse_rule(text) for text in spec.egress], outside, on_decision)

    async def serve(connection: Connection) -> None:
        await serve_connection(connection, gate)

    link = RelayLink(pipe, serve)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await link.until_ready()
    except (BadFrameError, TimeoutError) as error:
        problem = str(error) or f"it does not listen after {READY_SECONDS:g} s"
        words = f" ({pipe.words})" if pipe.words else ""
        raise SandboxError(
            f"the relay for egress can't be used: {problem}{words}; its image must be of this release: "
            "harness images build"
        ) from error

    async def carry() -> None:
        problem = "its relay ended"
        try:
            await link.run()
        except BadFrameError as error:
            problem = f"its relay sent what no relay of ours sends: {error}"
            started.writer.transport.abort()
        on_decision(Decision(Verdict.ENDED, "everything", why=f"{problem} {pipe.words}".rstrip()))

    carrying = asyncio.create_task(carry())
    try:
        yield
    finally:
        carrying.cancel()
        (failure,) = await asyncio.gather(carrying, return_exceptions=True)
        if isinstance(failure, Exception):
            logger.error("a relay's connections were dropped: %r", failure, exc_info=failure)
