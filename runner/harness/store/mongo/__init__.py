"""The store on MongoDB, for one host or many. `driver` is the only file of the product that imports pymongo."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Self

from harness.clock import SystemClock
from harness.errors import SchemaTooNewError, StoreUnavailableError
from harness.ports import Clock
from harness.store.documents import SCHEMA_VERSION
from harness.store.mongo import driver
from harness.store.mongo.access import MongoAccess
from harness.store.mongo.agents import AGENTS, ARTIFACTS, SCHEDULES, TASKS, UNSYNCED
from harness.store.mongo.artifacts import PENDING_FOR
from harness.store.mongo.driver import Database, Document, DuplicateKey
from harness.store.mongo.retention import MongoRetention
from harness.store.mongo.schedules import OUTBOX_SINCE
from harness.store.mongo.secrets import MongoSecrets
from harness.store.mongo.slots import LOGS_GONE, MARKS, WAITS_FOR, WAITS_MAX

__all__ = ["MongoStore"]

#: Unique ones have a single field: unique, sparse and several fields together mean different things to different
#: servers. Sparse ones hold only documents that have the field.
_UNIQUE = (
    (AGENTS, "name"),
    (TASKS, "fire_key"),
    (TASKS, "active_slot"),
    (TASKS, "queue_slot"),
    (ARTIFACTS, "task_id"),
)
_SPARSE = (
    (AGENTS, UNSYNCED),
    (TASKS, PENDING_FOR),
    *((TASKS, name) for name in MARKS),
    (SCHEDULES, "due_at"),
    (SCHEDULES, OUTBOX_SINCE),
)
_FOR_LISTS = (
    [("agent_id", 1), ("_id", -1)],
    [("status", 1), ("_id", -1)],
    [("agent_id", 1), ("status", 1), ("_id", -1)],
)
#: Tasks that have not ended have no `completed_at`, which comes before every instant.
_FOR_RETENTION = [("agent_id", 1), (LOGS_GONE, 1), ("completed_at", 1)]


class MongoStore(MongoRetention, MongoAccess, MongoSecrets):
    """`harness.ports.Store` on one MongoDB database, by single-document writes alone."""

    def __init__(self, client: Any, *, database: str, clock: Clock | None = None) -> None:
        """Use a client that stays the caller's to close; `connect` makes a store that owns its client.

        Args:
            client: An `AsyncMongoClient`, an `AsyncIOMotorClient` or a mongomock-motor client.
            database: Name of the database; it is made by the first write.
            clock: Counts the time between two looks at the server's clock, and stands in for that where there is none.
        """
        super().__init__(clock or SystemClock())
        self._client = client
        self._name = database
        self._uri: str | None = None
        self._store_id = ""
        self._opening = asyncio.Lock()

    @classmethod
    def connect(cls, uri: str, *, database: str, clock: Clock | None = None) -> Self:
        """Return a store that makes its own client when it is opened, and closes it.

        Args:
            uri: Connection string, such as ``mongodb://user:password@host:27017/``. Its options count, except for the
                write concern, which is always ``majority``.
            database: Name of the database.
            clock: As for the constructor.
        """
        store = cls(None, database=database, clock=clock)
        store._uri = uri
        return store

    @property
    def store_id(self) -> str:
        """Random id made with the store."""
        if not self._store_id:
            raise StoreUnavailableError("the store's id is known once it is open; await its open() first")
        return self._store_id

    async def open(self) -> None:
        """Connect, check the schema, create indexes."""
        async with self._opening:
            if self._database is None:
                await self._open()

    async def _open(self) -> None:
        location = self._name
        if self._uri is not None:
            self._client = driver.connect(self._uri)
            location = f"{driver.describe_uri(self._uri)}/{self._name}"
        self._database = Database(self._client, self._name, location)
        try:
            meta = await self._read_meta()
            await self._create_indexes()
            # Last, so that a store that has an id is complete.
            self._store_id = str((meta or await self._create_meta())["store_id"])
            await self._measure_clock()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the client, if it is the store's own."""
        database, self._database = self._database, None
        self._measured = None
        if database is not None:
            await database.drain()
        if self._uri is not None:
            client, self._client = self._client, None
            if client is not None:
                await driver.close(client)

    async def _read_meta(self) -> Document | None:
        meta = await self._db.find_one("meta", {"_id": "store"})
        if meta is not None and meta["schema_version"] > SCHEMA_VERSION:
            raise SchemaTooNewError(
                f"the store in the MongoDB database {self._name} has schema version {meta['schema_version']}, and this "
                f"release knows versions up to {SCHEMA_VERSION}; install the release that wrote it, or use another "
                "database"
            )
        return meta

    async def _create_meta(self) -> Document:
        meta = {"_id": "store", "schema_version": SCHEMA_VERSION, "store_id": uuid.uuid4().hex}
        try:
            await self._db.insert("meta", meta)
        except DuplicateKey:
            return await self._read_meta() or meta
        return meta

    async def _create_indexes(self) -> None:
        for collection, name in _UNIQUE:
            await self._db.ensure_index(collection, [(name, 1)], unique=True, sparse=True)
        for collection, name in _SPARSE:
            await self._db.ensure_index(collection, [(name, 1)], sparse=True)
        await self._db.ensure_index(TASKS, [(WAITS_FOR, 1), (WAITS_MAX, 1)], sparse=True)
        for keys in (*_FOR_LISTS, _FOR_RETENTION):
            await self._db.ensure_index(TASKS, keys)
