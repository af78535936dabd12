"""What is kept of an agent's output: up to a cap, in order, stdout and stderr told apart.

It is written to the store in chunks while the run lives.
"""

from __future__ import annotations

import logging

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
#: How often waiting output is stored while a run lives, in seconds.
FLUSH_SECONDS = 0.25


class OutputRecorder:
    """An `OutputSink` that keeps what it gets.

    Memory is bounded by the cap, whatever the agent prints and however slow the store is.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        task_id: int,
        fence: int,
        max_bytes: int,
        forward: OutputSink | None = None,
    ) -> None:
        """Record the attempt `fence` of a task.

        Args:
            store: Where chunks go.
            clock: Gives chunks their time.
            task_id: The task.
            fence: The claim under which chunks are written, and the attempt they belong to.
            max_bytes: What is kept, both streams together.
            forward: Also told everything that is kept, as it comes.
        """
        self._store = store
        self._clock = clock
        self._task_id = task_id
        self._fence = fence
        self._left = max_bytes
        self._forward = forward
        self._kept: dict[OutputStream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._waiting: list[LogChunk] = []
        self._next_index = 0
        #: Whether the last waiting chunk may still grow.
        self._last_is_open = False
        #: All bytes written by the agent, kept or not.
        self.total_bytes = 0
        #: Whether anything was dropped.
        self.truncated = False

    def __call__(self, stream: OutputStream, data: bytes) -> None:
        """Take a piece of output."""
        self.total_bytes += len(data)
        room = self._left if len(self._waiting) < MAX_WAITING_CHUNKS else 0
        if len(data) > room:
            self.truncated = True
            data = data[:room]
        if not data:
            return
        self._left -= len(data)
        self._kept[stream] += data
        for start in range(0, len(data), CHUNK_BYTES):
            self._add(stream, data[start : start + CHUNK_BYTES])
        if self._forward is not None:
            self._forward(stream, data)

    def _add(self, stream: OutputStream, data: bytes) -> None:
        last = self._waiting[-1] if self._last_is_open else None
        if last is not None and last.stream == stream and len(last.data) + len(data) <= CHUNK_BYTES:
            # Lines that come between two writes share a chunk.
            self._waiting[-1] = last.model_copy(update={"data": last.data + data})
            return
        seq = log_seq(self._fence, self._next_index)
        self._next_index += 1
        self._waiting.append(LogChunk(seq=seq, stream=stream, data=data, at=self._clock.now()))
        self._last_is_open = True

    def text(self, stream: OutputStream) -> str:
        """Return what was kept of a stream; bytes that are no UTF-8 come back as U+FFFD."""
        return self._kept[stream].decode(errors="replace")

    async def flush(self) -> None:
        """Store what is waiting.

        Raises:
            LeaseLostError: Nothing more may be stored.
            StoreError: Nothing was stored now; the chunks wait on.
        """
        chunks, self._waiting = self._waiting, []
        # A write that failed may have happened all the same, and a stored chunk is left as it is when it comes again:
        # what is added to it later would be lost.
        self._last_is_open = False
        if not chunks:
            return
        try:
            await self._store.append_logs(self._task_id, self._fence, chunks)
        except BaseException:
            self._waiting = chunks + self._waiting
            raise

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
