from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.unit.shop import Shop

from harness.announce import announce_schedules, store_text
from harness.errors import StoreUnavailableError
from harness.models import ScheduleState, render_instant
from harness.scheduler import TaskScheduler
from harness.settings import Settings

HOURLY = {"type": "interval", "interval_minutes": 60}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.store.open()
    yield shop
    await shop.store.close()


@pytest.mark.parametrize(
    ("uri", "hosts"),
    [
        ("mongodb://me:s3cret@db-1:27017,db-2/admin?replicaSet=rs0", "db-1:27017,db-2"),
        ("mongodb+srv://me:s3cret@cluster.example.org?tls=true", "cluster.example.org"),
        ("mongodb://localhost", "localhost"),
    ],
)
def test_a_store_is_named_without_its_secrets(uri: str, hosts: str) -> None:
    settings = Settings(mongodb_uri=SecretStr(uri), mongodb_database="mine")
    assert store_text(settings) == f"MongoDB at {hosts}, database mine"


def test_the_embedded_store_is_named_by_its_folder(tmp_path: Path) -> None:
    assert store_text(Settings(data_dir=tmp_path, mongodb_uri=None)) == f"SQLite in {tmp_path}"


async def test_the_schedules_in_force_are_counted_and_the_next_fires_told(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = TaskScheduler(store=shop.store)
    for minutes in (60, 30, 10, 20):
        agent = await shop.agent(f"every {minutes}", schedule=HOURLY | {"interval_minutes": minutes})
        await scheduler.sync_agent_schedule(agent.id)
    paused = await shop.agent("paused", schedule=HOURLY)
    await scheduler.pause(paused.id)
    await shop.agent("without")

    with caplog.at_level(logging.INFO):
        await announce_schedules(shop.store)

    (record,) = caplog.records
    assert record.getMessage() == (
        "4 schedules in force; next: every 10 at 2026-01-01T00:10:00Z, every 20 at 2026-01-01T00:20:00Z, "
        "every 30 at 2026-01-01T00:30:00Z"
    )


async def test_ten_thousand_schedules_are_counted(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    now = await shop.store.now()
    agents = [await shop.agent(f"agent {number}") for number in range(3)]
    state = ScheduleState(agent_id=1, agent_version=1, anchor_at=now, next_fire_at=now, due_at=now)
    await shop.store.put_schedules([state.model_copy(update={"agent_id": agent.id}) for agent in agents])

    def multiply(db: sqlite3.Connection) -> None:
        db.execute(
            """WITH RECURSIVE many (n) AS (SELECT 4 UNION ALL SELECT n + 1 FROM many WHERE n < 10000)
            INSERT INTO agents SELECT n, 'many ' || n, version, created_at, updated_at, deleting, config, entrypoint,
                code, files FROM agents, many WHERE id = 1"""
        )
        db.execute(
            """INSERT INTO schedules (agent_id, agent_version, next_fire_at, due_at, anchor_at, paused, removed, revision)
                SELECT agents.id, agent_version, next_fire_at, due_at + 1000, anchor_at, paused, removed, revision
                FROM schedules, agents WHERE agent_id = 1 AND agents.id > 3"""
        )

    await shop.store._file.write(multiply)

    with caplog.at_level(logging.INFO):
        await announce_schedules(shop.store)

    at = render_instant(now)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"10,000 schedules in force; next: agent 0 at {at}, agent 1 at {at}, agent 2 at {at}"
    )
    assert record.__dict__["count"] == 10_000


async def test_a_store_that_is_away_just_then_ends_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(shop.store, "next_schedules", fail)
    await announce_schedules(shop.store)
