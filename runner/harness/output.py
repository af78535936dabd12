"""What is kept of an agent's output: up to a cap, in order, stdout and stderr told apart.

It is written to the store in chunks while the run lives. No chunk ends within a UTF-8 character, so whoever reads a
chunk reads whole characters, however the agent's writes and the engine's frames cut them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from harness.aio import uninterrupted
from harness.errors import LeaseLostError, StoreError
from harness.models import LogChunk, log_seq
from harness.ports import Clock, OutputSink, OutputStream, Store

logger = logging.getLogger(__name__)

#: Largest chunk stored, in bytes.
CHUNK_BYTES = 64 * 1024
#: Most chunks that wait to be stored. A chunk costs memory of its own, and an agent that changes streams with every byte
#: would make a million of them while the store is away.
MAX_WAITING_CHUNKS = 20_000
#: Most bytes that wait to be stored; far above the default cap on a run's whole output.
MAX_WAITING_BYTES = 64 * 1024 * 1024
#: Most bytes stored by one call: a large write would keep the store's other users waiting.
WRITE_BYTES = 1024 * 1024
#: How often waiting output is stored while a run lives, in seconds.
FLUSH_SECONDS = 0.25


class OutputRecorder:
    """An `OutputSink` that keeps what it gets.

    Memory is bounded by `keep_bytes` and `MAX_WAITING_BYTES`, whatever the agent prints and however slow the store is.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        task_id: int,
        fence: int,
        max_bytes: int,
        keep_bytes: int | None = None,
        forward: OutputSink | None = None,
    ) -> None:
        """Record the attempt `fence` of a task.

        Args:
            store: Where chunks go.
            clock: Gives chunks their time.
            task_id: The task.
            fence: The claim under which chunks are written, and the attempt they belong to.
            max_bytes: What is kept in the store, both streams together.
            keep_bytes: How much of the end of a stream stays in memory at least, once it is longer than twice that;
                None: all of it.
            forward: Also told everything that is kept, as it comes.
        """
        self._store = store
        self._clock = clock
        self._task_id = task_id
        self._fence = fence
        self._left = max_bytes
        self._forward = forward
        keep_bytes = max_bytes if keep_bytes is None else keep_bytes
        self._kept: dict[OutputStream, _Kept] = {"stdout": _Kept(keep_bytes), "stderr": _Kept(keep_bytes)}
        self._open: _OpenChunk | None = None
        #: The first bytes of a character whose others have not come yet.
        self._torn: dict[OutputStream, bytes] = {}
        #: Complete chunks, until they are stored.
        self._waiting: list[LogChunk] = []
        self._waiting_bytes = 0
        self._next_index = 0
        #: All bytes written by the agent, kept or not.
        self.total_bytes = 0
        #: Whether anything was dropped.
        self.truncated = False

    def __call__(self, stream: OutputStream, data: bytes) -> None:
        """Take a piece of output."""
        self.total_bytes += len(data)
        is_full = len(self._waiting) >= MAX_WAITING_CHUNKS
        room = 0 if is_full else min(self._left, MAX_WAITING_BYTES - self._waiting_bytes)
        if len(data) > room:
            self.truncated = True
            data = data[: max(room, 0)]
        if not data:
            return
        self._left -= len(data)
        self._kept[stream].add(data)
        self._add(stream, data)
        if self._forward is not None:
            self._forward(stream, data)

    def _add(self, stream: OutputStream, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._open is None or self._open.stream != stream:
                self._close_chunk()
                self._open = _OpenChunk(stream, bytearray(self._torn.pop(stream, b"")), self._clock.now())
            # Lines that come between two writes share a chunk.
            end = at + CHUNK_BYTES - len(self._open.data)
            self._open.data += data[at:end]
            at = end
            if len(self._open.data) >= CHUNK_BYTES:
                self._close_chunk()

    def _close_chunk(self) -> None:
        """Have the open chunk wait to be stored, up to its last whole character."""
        chunk, self._open = self._open, None
        if chunk is None:
            return
        end = len(chunk.data) - _torn_bytes(chunk.data)
        if end < len(chunk.data):
            self._torn[chunk.stream] = bytes(chunk.data[end:])
        if end:
            self._wait(chunk.stream, bytes(chunk.data[:end]), chunk.at)

    def _wait(self, stream: OutputStream, data: bytes, at: datetime) -> None:
        seq = log_seq(self._fence, self._next_index)
        self._next_index += 1
        self._waiting.append(LogChunk(seq=seq, stream=stream, data=data, at=at))
        self._waiting_bytes += len(data)

    def text(self, stream: OutputStream) -> str:
        """Return what is in memory of a stream; bytes that are no UTF-8 come back as U+FFFD."""
        return self._kept[stream].data.decode(errors="replace")

    def is_whole(self, stream: OutputStream) -> bool:
        """Return whether `text` is all that was kept, and not only its end."""
        return self._kept[stream].is_whole

    async def flush(self, *, is_last: bool = False) -> None:
        """Store what is waiting.

        Args:
            is_last: No more output comes, so that the begin of a character is stored as it is.

        Raises:
            LeaseLostError: Nothing more may be stored.
            StoreError: Not all of it was stored now; the rest waits on.
        """
        # A write that failed may have happened all the same, and a stored chunk is left as it is when it comes again:
        # what is added to it later would be lost.
        self._close_chunk()
        if is_last:
            while self._torn:
                stream, data = self._torn.popitem()
                self._wait(stream, data, self._clock.now())
        # Not what comes meanwhile: an agent that prints without end must not hold up this call.
        left = len(self._waiting)
        while left > 0:
            batch = self._take_batch()
            try:
                await self._store.append_logs(self._task_id, self._fence, batch)
            except BaseException:
                self._waiting[:0] = batch
                raise
            self._waiting_bytes -= sum(len(chunk.data) for chunk in batch)
            left -= len(batch)

    def _take_batch(self) -> list[LogChunk]:
        size = count = 0
        while count < len(self._waiting) and (
            count == 0 or size + len(self._waiting[count].data) <= WRITE_BYTES
        ):
            size += len(self._waiting[count].data)
            count += 1
        batch = self._waiting[:count]
        del self._waiting[:count]
        return batch

    async def flush_periodically(self) -> None:
        """Store output while a run lives, until cancelled; a store that is away is tried again."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            try:
                # Its chunks wait again when a write fails, so whoever cancels this and flushes the rest must find them.
                await uninterrupted(self.flush())
            except LeaseLostError:
                return
            except StoreError as error:
                logger.warning("output of task %d not stored yet: %s", self._task_id, error)


@dataclass(slots=True)
class _OpenChunk:
    """A chunk that may still grow."""

    stream: OutputStream
    data: bytearray
    at: datetime


class _Kept:
    """What is in memory of one stream: all of it at first, later its end."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self.data = bytearray()
        self.is_whole = True

    def add(self, data: bytes) -> None:
        self.data += data
        # At twice the size, so that a byte is moved once on average.
        if len(self.data) > 2 * self._keep_bytes:
            del self.data[: len(self.data) - self._keep_bytes]
            self.is_whole = False


def _torn_bytes(data: bytearray) -> int:
    """Return how many bytes at the end are the begin of a UTF-8 character whose others are missing (RFC 3629)."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte & 0b1100_0000 != 0b1000_0000:
            wanted = (
                2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 0
            )
            return length if wanted > length else 0
    return 0
