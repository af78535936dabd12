"""The only file importing pymongo: the few calls the store makes, on any of three drivers, and what errors mean.

`AsyncMongoClient`, Motor's `AsyncIOMotorClient` and mongomock-motor's client agree on the methods used here. They do not
on `aggregate`, sessions and closing, so the store does without.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import bson
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReturnDocument, WriteConcern
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
)

from harness.errors import HarnessError, InvalidInputError, StoreError, StoreUnavailableError

Document = dict[str, Any]
#: A field and 1 or -1, as in MongoDB's own shell.
Sort = Sequence[tuple[str, int]]

#: How long closing waits for calls under way.
DRAIN_SECONDS = 5.0

#: MongoDB's bound on one document, in bytes of BSON.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024

#: What counts unless the connection string says otherwise.
_DEFAULTS = {
    # How long to look for a server; short, since a caller can try again.
    "serverSelectionTimeoutMS": 5_000,
    # How long to wait for an answer: a server that hangs must not hold a caller for ever. Not `timeoutMS`, which PyMongo
    # lets override the bound above.
    "socketTimeoutMS": 20_000,
}

# Error codes of the server: AuthenticationFailed, Unauthorized, AtlasError (failed authentication).
_REFUSED_CODES = frozenset({18, 13, 8000})
_DUPLICATE_KEY_CODE = 11000
# BSONObjectTooLarge, and what an update that lets a document grow too large gives.
_TOO_LARGE_CODES = frozenset({10334, 17419, 17420})

_MAY_HOLD_SECRETS = re.compile("@|password|authmechanismproperties", re.IGNORECASE)

T = TypeVar("T")


class DuplicateKey(Exception):  # noqa: N818 - the store catches it; callers see one of the product's errors
    """Another document has the same value of a unique field."""


def connect(uri: str) -> AsyncMongoClient[Document]:
    """Build a client; it connects when it is first used.

    Raises:
        StoreUnavailableError: The connection string is malformed; the message does not repeat its user and password.
    """
    options: dict[str, Any] = {
        "w": "majority",
        "retryWrites": True,
        "tz_aware": True,
        "appname": "agent-harness",
    }
    # An option given as an argument would win over the one in the connection string.
    options |= {
        name: value
        for name, value in _DEFAULTS.items()
        if not re.search(rf"[?&;]{name}=", uri, re.IGNORECASE)
    }
    detail = ""
    if uri.startswith(("mongodb://", "mongodb+srv://")):
        try:
            with warnings.catch_warnings():
                # The driver would warn of a misspelt tls=…, and go on without TLS.
                warnings.simplefilter("error", UserWarning)
                return AsyncMongoClient(uri, **options)
        except (ConfigurationError, ValueError, TypeError, UserWarning) as error:
            # The driver's words may quote a part of the password, and its exception would stand in the traceback.
            detail = "" if _MAY_HOLD_SECRETS.search(uri) else f": {error}"
    raise StoreUnavailableError(
        f"the MongoDB connection string for {describe_uri(uri)} is malformed{detail}; it must look like "
        "mongodb://user:password@host:27017/, with user and password percent-encoded (RFC 3986)"
    )


def describe_uri(uri: str) -> str:
    """Return scheme and hosts of a connection string: what may stand in a message."""
    scheme, found, rest = uri.partition("://")
    if not found:
        return "MongoDB"
    # A password that was not percent-encoded may hold any of the separators, so the last @ counts.
    hosts = rest.rpartition("@")[2] if "@" in rest else rest
    return f"{scheme}://{re.split('[/?]', hosts, maxsplit=1)[0]}"


async def close(client: AsyncMongoClient[Document]) -> None:
    """Close a client made by `connect`."""
    await client.close()


class Database:
    """One database, through whichever driver the client is from."""

    def __init__(self, client: Any, name: str, location: str) -> None:
        """Address the database.

        Args:
            client: Stays its owner's.
            name: Of the database.
            location: Where it is, for messages; without secrets.
        """
        # Majority: a write that a failover can undo is not durable, whatever the client was set to.
        self._database = client.get_database(name, write_concern=WriteConcern("majority"))
        self._location = location
        self._calls: set[asyncio.Future[Any]] = set()

    async def drain(self) -> None:
        """Wait for calls whose callers were cancelled; not for long, should the server hang."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=DRAIN_SECONDS)

    async def server_time(self) -> datetime | None:
        """Ask for the server's time; None when it has no such thing, as mongomock."""
        try:
            reply = await self._call(self._database.command("hello"))
        except NotImplementedError:
            return None
        local: datetime | None = reply.get("localTime")
        return local if local is None else _aware(local)

    async def find_one(
        self,
        collection: str,
        query: Document,
        sort: Sort | None = None,
        *,
        fields: Sequence[str] | None = None,
    ) -> Document | None:
        """Return the first document that matches, or of it just some fields and its `_id`."""
        found = await self._call(self._database[collection].find_one(query, fields, sort=sort))
        return None if found is None else _aware(found)

    async def find(
        self,
        collection: str,
        query: Document,
        *,
        sort: Sort,
        limit: int,
        offset: int = 0,
        fields: Sequence[str] | None = None,
    ) -> list[Document]:
        """Return the documents that match, in order."""
        cursor = self._database[collection].find(query, fields).sort(list(sort)).skip(offset).limit(limit)
        return [_aware(document) for document in await self._call(cursor.to_list(None))]

    async def distinct(self, collection: str, field: str, query: Document) -> list[Any]:
        """Return the values a field has in the documents that match."""
        values: list[Any] = await self._call(self._database[collection].distinct(field, query))
        return values

    async def count(self, collection: str, query: Document, *, limit: int | None = None) -> int:
        """Count the documents that match, up to `limit`."""
        bound = {} if limit is None else {"limit": limit}
        count: int = await self._call(self._database[collection].count_documents(query, **bound))
        return count

    async def insert(self, collection: str, document: Document) -> None:
        """Insert a document.

        Raises:
            DuplicateKey: One with the same `_id`, or the same value of a unique field, exists.
            InvalidInputError: It is too large.
        """
        size = len(self._encode(document))
        if size > MAX_DOCUMENT_BYTES:
            raise InvalidInputError(
                f"a record for {collection} takes {size:,} bytes, more than MongoDB's {MAX_DOCUMENT_BYTES:,}; store less"
            )
        await self._call(self._database[collection].insert_one(document))

    async def insert_missing(self, collection: str, documents: Sequence[Document]) -> None:
        """Insert those documents whose `_id` is not there yet."""
        if documents:
            await self._call(self._insert_missing(collection, documents))

    async def _insert_missing(self, collection: str, documents: Sequence[Document]) -> None:
        try:
            await self._database[collection].insert_many(documents, ordered=False)
        except BulkWriteError as error:
            details = error.details or {}
            codes = {failure.get("code") for failure in details.get("writeErrors", [])}
            if codes != {_DUPLICATE_KEY_CODE} or details.get("writeConcernErrors"):
                raise

    async def update_one(self, collection: str, query: Document, update: Mapping[str, Document]) -> bool:
        """Update the document that matches, if there is one, and return whether there was.

        Raises:
            DuplicateKey: Another has the new value of a unique field.
        """
        filled = {operator: fields for operator, fields in update.items() if fields}
        result = await self._call(self._database[collection].update_one(query, filled))
        return bool(result.matched_count)

    async def delete(self, collection: str, query: Document) -> int:
        """Delete every document that matches; return how many there were."""
        result = await self._call(self._database[collection].delete_many(query))
        return int(result.deleted_count)

    async def next_number(self, name: str, count: int = 1) -> int:
        """Count up the counter of that name, from 1, by `count`; return the first of these numbers.

        A number is never returned twice.
        """
        while True:
            update = self._database["counters"].find_one_and_update(
                {"_id": name}, {"$inc": {"value": count}}, upsert=True, return_document=ReturnDocument.AFTER
            )
            # Two upserts that make the counter at once: the second one fails, or finds nothing, and counts again.
            with suppress(DuplicateKey):
                if counter := await self._call(update):
                    return int(counter["value"]) - count + 1

    async def ensure_index(
        self, collection: str, keys: Sort, *, unique: bool = False, sparse: bool = False
    ) -> None:
        """Create an index unless it exists."""
        await self._call(self._database[collection].create_index(list(keys), unique=unique, sparse=sparse))

    def _encode(self, document: Document) -> bytes:
        try:
            return bson.encode(document)
        except (BSONError, OverflowError) as error:
            raise InvalidInputError(f"MongoDB cannot hold a value: {error}") from error

    async def _call(self, awaitable: Awaitable[T]) -> T:
        # Not cancelled with its caller: the driver would throw away the connection, and leak its socket when it was just
        # being made.
        call = asyncio.ensure_future(awaitable)
        self._calls.add(call)
        call.add_done_callback(self._forget)
        try:
            return await asyncio.shield(call)
        except DuplicateKeyError as error:
            raise DuplicateKey(str(error)) from error
        except (PyMongoError, BSONError, OverflowError) as error:
            raise self._explain(error) from error

    def _forget(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            # Looked at, or asyncio would report the error of a call that nobody waits for any more.
            call.exception()

    def _explain(self, error: Exception) -> HarnessError:
        where, words = self._location, str(error)[:300]
        if isinstance(error, DocumentTooLarge) or getattr(error, "code", None) in _TOO_LARGE_CODES:
            return InvalidInputError(
                f"a record is larger than MongoDB's {MAX_DOCUMENT_BYTES:,} bytes; store less"
            )
        if isinstance(error, BSONError | OverflowError):
            return InvalidInputError(f"MongoDB cannot hold a value: {words}")
        if isinstance(error, OperationFailure) and error.code in _REFUSED_CODES:
            return StoreUnavailableError(
                f"the MongoDB at {where} refused the user or its rights ({words}); check the credentials, and that the "
                "user has the role readWrite on the database"
            )
        if isinstance(error, ConnectionFailure | ConfigurationError) or getattr(error, "timeout", False):
            return StoreUnavailableError(
                f"the MongoDB at {where} does not answer ({words}); check that it runs, its address and the network"
            )
        if isinstance(error, InvalidOperation):
            return StoreUnavailableError(f"the client for the MongoDB at {where} is closed ({words})")
        return StoreError(f"the MongoDB at {where} failed: {words}")


def _aware(value: Any) -> Any:
    """Return a value with every instant aware UTC, whatever the client was set to."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, dict):
        return {key: _aware(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_aware(inner) for inner in value]
    return value
