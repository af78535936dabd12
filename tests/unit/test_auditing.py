"""The writing of the audit log, on a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from harness.errors import (
    DeadlineExceededError,
    InvalidInputError,
    PermissionDeniedError,
    StoreBusyError,
)
from harness.ports import Store
from harness.testing import FakeClock, MemoryStore
from harness_server.auditing import DENIALS_AT_ONCE, Auditor
from harness_server.auth import Principal
from harness_server.middleware import REQUEST_ID

SOMEBODY = Principal("127.0.0.1", None)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = MemoryStore(clock=FakeClock())
    await made.open()
    yield made
    await made.close()


def auditor(store: Store) -> Auditor:
    return Auditor(store, clock=FakeClock(), max_entries=1000)


async def watch(made: Auditor, outcome: web.StreamResponse | BaseException) -> web.StreamResponse:
    request = make_mocked_request("POST", "/api/agents?x=1")
    request[REQUEST_ID] = "abcd"

    async def work() -> web.StreamResponse:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return await made.watch(request, SOMEBODY, "create_agent", work)


async def test_what_was_done_is_written_down(store: Store) -> None:
    response = web.Response(status=201, headers={"Location": "/api/agents/5"})

    assert await watch(auditor(store), response) is response

    (entry,) = await store.list_audit()
    assert entry.model_dump(exclude={"at"}) == {
        "id": 1,
        "token_id": None,
        "actor": "local",
        "peer": "127.0.0.1",
        "action": "create_agent",
        "target": "/api/agents",
        "made": "/api/agents/5",
        "status": 201,
        "request_id": "abcd",
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PermissionDeniedError("no"), 403),
        (DeadlineExceededError("late"), 504),
        (StoreBusyError("busy"), 503),
        (RuntimeError("a bug"), 500),
    ],
)
async def test_what_was_denied_or_may_have_been_done_is_written_down(
    store: Store, error: Exception, status: int
) -> None:
    with pytest.raises(type(error)):
        await watch(auditor(store), error)

    assert [entry.status for entry in await store.list_audit()] == [status]


async def test_what_was_refused_as_wrong_changed_nothing_and_is_not(store: Store) -> None:
    with pytest.raises(InvalidInputError):
        await watch(auditor(store), InvalidInputError("wrong"))

    assert await store.list_audit() == []


async def test_refusals_do_not_push_out_what_was_done(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    made = auditor(store)
    for _ in range(DENIALS_AT_ONCE + 30):
        with pytest.raises(PermissionDeniedError):
            await watch(made, PermissionDeniedError("no"))
    await watch(made, web.Response())

    assert len(await store.list_audit(limit=1000)) == DENIALS_AT_ONCE + 1
    assert (
        len([record for record in caplog.records if vars(record)["action"] == "audit"])
        == DENIALS_AT_ONCE + 31
    )


async def test_a_change_stands_though_its_line_could_not_be_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_args: Any, **_given: Any) -> None:
        raise StoreBusyError("locked")

    monkeypatch.setattr(store, "append_audit", fail)

    assert (await watch(auditor(store), web.Response(status=204))).status == 204

    assert [vars(record)["action"] for record in caplog.records] == ["audit_failed"]


async def test_a_line_is_stored_though_the_client_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, going = asyncio.Event(), asyncio.Event()
    append = store.append_audit

    async def slow(*args: Any, **given: Any) -> Any:
        begun.set()
        await going.wait()
        return await append(*args, **given)

    monkeypatch.setattr(store, "append_audit", slow)
    watching = asyncio.create_task(watch(auditor(store), web.Response()))
    await begun.wait()
    watching.cancel()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await watching

    assert len(await store.list_audit()) == 1


async def test_a_stop_in_the_middle_is_at_least_in_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(asyncio.CancelledError):
        await watch(auditor(store), asyncio.CancelledError())

    assert [vars(record)["status"] for record in caplog.records] == [500]
