from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from mongomock_motor import AsyncMongoMockClient
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from tests.contract import places
from tests.contract.places import MemoryPlace, MongoPlace, Place, SqlitePlace, draft

from harness.models import Agent
from harness.ports import Store

_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


@pytest.fixture(scope="session")
def wire_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of a wire-protocol server that runs as a process of its own until the session ends."""
    folder = tmp_path_factory.mktemp("secantus")
    log = folder / "log.txt"
    command = [str(Path(sys.executable).with_name("secantusd-py")), "--host", "127.0.0.1", "--port", "0"]
    # A configuration of the person who runs the tests must not be found.
    environment = os.environ | {"HOME": str(folder)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--storage-path", str(folder / "data"), "--log-level", "INFO"],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield f"mongodb://127.0.0.1:{_wait_for_port(process, log)}/"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if found := _LISTENING.search(log.read_text()):
            return int(found[1])
        time.sleep(0.02)
    pytest.fail(f"the wire-protocol server did not start:\n{log.read_text()}")


def _make_place(name: str, request: pytest.FixtureRequest) -> Place:
    if name == places.MEMORY:
        return MemoryPlace()
    if name == places.SQLITE:
        return SqlitePlace(request.getfixturevalue("tmp_path"))
    if name == places.MONGOMOCK:
        mock: Any = AsyncMongoMockClient()
        return MongoPlace(lambda: mock)
    if name == places.NAMED:
        uri = os.environ["HARNESS_TEST_MONGODB_URI"]
    else:
        uri = request.getfixturevalue("wire_uri")
    driver: Any = AsyncIOMotorClient if name == places.MOTOR else AsyncMongoClient
    return MongoPlace(lambda: driver(uri), uri)


@pytest.fixture(params=places.EVERY)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Every kind of store."""
    made = _make_place(request.param, request)
    yield made
    await made.clean()


@pytest.fixture(params=places.SHARED)
async def shared_place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Stores whose data outlives one store object."""
    made = _make_place(request.param, request)
    yield made
    await made.clean()


@pytest.fixture(params=places.REAL)
async def real_place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Stores on which races are real."""
    made = _make_place(request.param, request)
    yield made
    await made.clean()


@pytest.fixture
async def store(place: Place) -> Store:
    made = place.make()
    await made.open()
    return made


@pytest.fixture
async def agent(store: Store) -> Agent:
    return await store.create_agent(draft())
