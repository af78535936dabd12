"""Task output and samples in MongoDB: one document per chunk or sample, keyed by task and sequence number."""

from __future__ import annotations

from collections.abc import Sequence

from harness.models import LogChunk, UsageSample
from harness.store import documents
from harness.store.documents import check_page, int64, whole_millis
from harness.store.mongo.agents import LOGS, SAMPLES
from harness.store.mongo.base import keys_of, ordered_key
from harness.store.mongo.schedules import MongoSchedules


class MongoLogs(MongoSchedules):
    """The logs of a `MongoStore`."""

    async def append_logs(self, task_id: int, fence: int, chunks: Sequence[LogChunk]) -> None:
        """Add output of an attempt.

        The check and the insert are two steps. What a runner that loses its lease in between still adds is output of
        its own attempt, which happened; the attempt's number in every key keeps it from touching another's.
        """
        documents.check_chunks(fence, chunks)
        await self._check_held(task_id, fence)
        await self._db.insert_missing(
            LOGS,
            [
                {
                    "_id": ordered_key(task_id, chunk.seq),
                    "seq": chunk.seq,
                    "stream": chunk.stream,
                    "data": chunk.data,
                    "at": whole_millis(chunk.at),
                }
                for chunk in chunks
            ],
        )

    async def read_logs(self, task_id: int, *, after_seq: int = -1, limit: int = 1000) -> Sequence[LogChunk]:
        """Return chunks in order."""
        check_page(limit)
        query = {"_id": keys_of(int64(task_id), after=after_seq)}
        found = await self._db.find(LOGS, query, sort=[("_id", 1)], limit=limit)
        return [
            LogChunk(seq=chunk["seq"], stream=chunk["stream"], data=chunk["data"], at=chunk["at"])
            for chunk in found
        ]

    async def append_samples(self, task_id: int, fence: int, samples: Sequence[UsageSample]) -> None:
        """Add samples of an attempt; check and insert are two steps, as for chunks."""
        documents.check_samples(fence, samples)
        await self._check_held(task_id, fence)
        await self._db.insert_missing(
            SAMPLES,
            [
                {
                    "_id": ordered_key(task_id, sample.seq),
                    **sample.model_dump(),
                    "at": whole_millis(sample.at),
                }
                for sample in samples
            ],
        )

    async def read_samples(
        self, task_id: int, *, after_seq: int = -1, limit: int = 1000
    ) -> Sequence[UsageSample]:
        """Return samples in order."""
        check_page(limit)
        query = {"_id": keys_of(int64(task_id), after=after_seq)}
        found = await self._db.find(SAMPLES, query, sort=[("_id", 1)], limit=limit)
        return [
            UsageSample.model_validate({name: sample[name] for name in UsageSample.model_fields})
            for sample in found
        ]
