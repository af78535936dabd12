from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mongomock_motor import AsyncMongoMockClient
from tests.contract.places import MOTOR, WIRE, MongoPlace, Place, draft
from tests.contract.test_opening import every_call

from harness.errors import InvalidInputError, StoreError, StoreUnavailableError
from harness.models import Task, TaskStatus
from harness.store.mongo import MongoStore
from harness.store.mongo.base import CLOCK_REFRESH_SECONDS
from harness.store.mongo.driver import connect, describe_uri
from harness.testing import FakeClock

#: The driver leaks the socket of a connection that is being made while its client is closed: its `sock_connect` is
#: cancelled, and it closes the socket for an OSError alone (pymongo 4.20, pool_shared.py).
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

on_the_wire = pytest.mark.parametrize("real_place", [WIRE, MOTOR], indirect=True)


class Proxy:
    """Stands between a client and a server, and can be taken away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.own_port = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None
        self.pipes: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.own_port)
        self.own_port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self.pipes, return_exceptions=True)
        self.writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pipe = asyncio.create_task(self._pipe(source, sink))
            self.pipes.add(pipe)
            pipe.add_done_callback(self.pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


@pytest.fixture
async def proxy(wire_uri: str) -> AsyncIterator[Proxy]:
    made = Proxy(int(wire_uri.rstrip("/").rpartition(":")[2]))
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def place(wire_uri: str) -> AsyncIterator[MongoPlace]:
    """Only for its database, which it drops."""
    made = MongoPlace(lambda: connect(wire_uri), wire_uri)
    made.client()
    yield made
    await made.clean()


SECRETS = [
    "mongodb://user:s3cret@127.0.0.1:1/?serverSelectionTimeoutMS=100",
    "mongodb://user:s3cret@127.0.0.1:1,127.0.0.1:2/db?serverSelectionTimeoutMS=100&authSource=admin",
    "mongodb://us@er:s3cret@127.0.0.1:1/",
    "mongodb://user:s3c/ret@127.0.0.1:1/",
    "mongodb://user:s3cret:s3cret@127.0.0.1:1/",
    "mongodb://user:s3cret@127.0.0.1:port/",
    "mongodb://user:s3%cret@127.0.0.1:1/",
    "mongodb://user:s3cret@127.0.0.1:1/?w=nonsense&tls=maybe",
    "mongodb://user:s3cret@127.0.0.1:1/?authMechanism=s3cret",
    "mongo://user:s3cret@127.0.0.1:1/",
    "user:s3cret@127.0.0.1:1",
]


@pytest.mark.parametrize("uri", SECRETS)
async def test_an_address_without_a_server_is_named_without_its_secrets(uri: str) -> None:
    store = MongoStore.connect(uri, database="x")
    begin = time.monotonic()

    with pytest.raises(
        StoreUnavailableError, match=r"127\.0\.0\.1:(1|port)|for MongoDB is malformed"
    ) as caught:
        await store.open()

    assert time.monotonic() - begin < 5
    error: BaseException | None = caught.value
    while error is not None:
        for secret in ("s3cret", "s3c", "user"):
            assert secret not in str(error).replace("user:password", "").replace("with user and password", "")
        error = error.__cause__ or error.__context__
    await store.close()


@pytest.mark.parametrize("uri", ["", "nonsense", "localhost:27017", "mongodb://", "mongodb://host:port/"])
async def test_a_malformed_connection_string_is_explained(uri: str) -> None:
    store = MongoStore.connect(uri, database="x")

    with pytest.raises(StoreUnavailableError, match=r"must look like mongodb://user:password@host:27017/"):
        await store.open()

    await store.close()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mongodb://user:p@host:1/db?x=1", "mongodb://host:1"),
        ("mongodb://a:1,b:2", "mongodb://a:1,b:2"),
        ("mongodb+srv://u:p@cluster.example.net/?x=@", "mongodb+srv://"),
        ("nonsense", "MongoDB"),
    ],
)
def test_what_a_message_says_of_a_connection_string(uri: str, expected: str) -> None:
    assert describe_uri(uri) == expected


async def test_connect_makes_a_store_that_owns_its_client(place: MongoPlace, wire_uri: str) -> None:
    store = MongoStore.connect(wire_uri, database=place.database)
    await store.open()
    agent = await store.create_agent(draft())
    client = store._client
    assert client.options.retry_writes
    assert client.options.server_selection_timeout == 5
    assert client.options.pool_options.socket_timeout == 20
    await store.close()
    assert client._closed

    await store.open()
    assert await store.get_agent(agent.id) == agent
    await store.close()


async def test_options_in_the_connection_string_count(place: MongoPlace, wire_uri: str) -> None:
    options = "?w=1&socketTimeoutMS=7000&serverselectiontimeoutms=3000&appname=mine"
    store = MongoStore.connect(wire_uri + options, database=place.database)
    await store.open()

    assert store._client.options.server_selection_timeout == 3
    assert store._client.options.pool_options.socket_timeout == 7
    # Not this one: what a failover can undo is not durable.
    assert store._client.options.write_concern.document == {"w": "majority"}
    await store.close()


@on_the_wire
async def test_every_write_waits_for_a_majority_whatever_the_client_says(real_place: Place) -> None:
    store = real_place.make()
    await store.open()

    assert isinstance(store, MongoStore)
    assert store._database is not None
    assert store._database._database.write_concern.document == {"w": "majority"}


async def test_a_server_that_goes_away_is_unavailable_and_welcome_back(
    place: MongoPlace, proxy: Proxy
) -> None:
    uri = f"mongodb://127.0.0.1:{proxy.own_port}/?directConnection=true&serverSelectionTimeoutMS=300"
    store = MongoStore.connect(uri, database=place.database)
    place.keep(store)
    await store.open()
    agent = await store.create_agent(draft())
    now = await store.now()
    task = Task(id=1, agent_id=1, status=TaskStatus.PENDING, scheduled_at=now, created_at=now, due_at=now)

    await proxy.stop()
    results = await asyncio.gather(*every_call(store, task).values(), return_exceptions=True)

    for name, result in zip(every_names(store, task), results, strict=True):
        if name != "now":
            assert type(result) is StoreUnavailableError, (name, result)
            assert f"mongodb://127.0.0.1:{proxy.own_port}/{place.database} does not answer" in str(result)
    await proxy.start()
    # The driver looks for its server every half a second.
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreUnavailableError):
                assert await store.get_agent(agent.id) == agent
                break


def every_names(store: MongoStore, task: Task) -> list[str]:
    calls: dict[str, Any] = dict(every_call(store, task))
    for call in calls.values():
        call.close()
    return list(calls)


async def test_a_client_that_its_owner_closed_is_reported(wire_uri: str) -> None:
    client = connect(wire_uri)
    store = MongoStore(client, database="harness_test_closed")
    await client.close()

    with pytest.raises(StoreUnavailableError, match=r"client .* is closed"):
        await store.open()


@on_the_wire
async def test_leases_follow_the_servers_clock(real_place: Place) -> None:
    # Years away from the server's.
    assert abs(real_place.clock.now() - datetime.now(UTC)) > timedelta(days=30)
    store = real_place.make()
    await store.open()
    assert abs(await store.now() - datetime.now(UTC)) < timedelta(seconds=2)
    before = await store.now()

    await real_place.clock.advance(CLOCK_REFRESH_SECONDS)
    # A step of this machine's wall clock is none of a lease's business.
    real_place.clock.set_wall_clock(datetime(2000, 1, 1, tzinfo=UTC))
    assert await store.now() - before == timedelta(seconds=CLOCK_REFRESH_SECONDS)
    await real_place.clock.advance(1)

    assert abs(await store.now() - datetime.now(UTC)) < timedelta(seconds=2)


async def test_without_a_servers_clock_the_machines_counts() -> None:
    clock = FakeClock()
    store = MongoStore(AsyncMongoMockClient(), database="x", clock=clock)
    await store.open()

    assert await store.now() == clock.now()


async def test_a_record_too_large_for_mongodb_is_refused_before_the_write() -> None:
    store = MongoStore(AsyncMongoMockClient(), database="x")
    await store.open()
    assert store._database is not None

    with pytest.raises(InvalidInputError, match=r"takes 17,\d+,\d+ bytes, more than MongoDB's 16,777,216"):
        await store._database.insert("logs", {"_id": 1, "data": b"x" * 17_000_000})
    with pytest.raises(InvalidInputError, match="MongoDB cannot hold a value"):
        await store._database.insert("logs", {"_id": 1, "data": 2**64})


@on_the_wire
async def test_what_the_driver_raises_never_escapes(real_place: Place) -> None:
    store = real_place.make()
    await store.open()
    assert isinstance(store, MongoStore)
    assert store._database is not None

    with pytest.raises(InvalidInputError, match="MongoDB cannot hold"):
        await store._database.find_one("tasks", {"_id": 2**64})
    with pytest.raises(StoreError, match="failed: "):
        await store._database.find_one("tasks", {"$nonsense": 1})


async def test_a_name_of_an_agent_whose_deletion_was_cut_says_whose_it_is(place: MongoPlace) -> None:
    store = place.make()
    await store.open()
    agent = await store.create_agent(draft())
    await place.raw()["agents"].update_one({"_id": agent.id}, {"$set": {"deleting": True}})

    assert await store.find_agent("agent") == agent
    await store.delete_agent(agent.id)
    await store.create_agent(draft())
