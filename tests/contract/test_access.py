from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest
from tests.contract.places import Place, SqlitePlace, draft

from harness.audit import AuditDraft, AuditEntry
from harness.errors import InvalidInputError, TokenNotFoundError
from harness.ports import Store
from harness.tokens import TOUCH_SECONDS, ApiToken, ScopeName, TokenDraft, TokenText, hash_secret, new_secret

SECRET = new_secret()


async def a_token(store: Store, name: str = "ci", scope: ScopeName = "run") -> ApiToken:
    return await store.create_token(TokenDraft(name=name, scope=scope), hash_secret(SECRET))


def line(action: str = "create_agent", **fields: object) -> AuditDraft:
    return AuditDraft.model_validate({"actor": "ci", "action": action, "status": 200} | fields)


async def ids_of(store: Store) -> list[int]:
    return [entry.id for entry in await store.list_audit(limit=1000)]


async def test_a_token_is_found_with_the_hash_of_its_secret(store: Store) -> None:
    expires_at = await store.now() + timedelta(days=90)
    made = await store.create_token(
        TokenDraft(name="ci", scope="admin", expires_at=expires_at), hash_secret(SECRET)
    )

    assert made == ApiToken(
        id=1, name="ci", scope="admin", created_at=await store.now(), expires_at=expires_at
    )
    found = await store.find_token(1)
    assert found == (made, hash_secret(SECRET))
    assert TokenText(1, SECRET).matches(found[1])


@pytest.mark.parametrize("token_id", [0, 2, -1, 2**63, 10**30])
async def test_a_token_that_is_not_there_is_not_found(store: Store, token_id: int) -> None:
    await a_token(store)

    assert await store.find_token(token_id) is None
    with pytest.raises(TokenNotFoundError, match=f"no token {token_id}"):
        await store.revoke_token(token_id)
    await store.touch_token(token_id)


async def test_nothing_but_a_hash_is_stored(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="no SHA-256"):
        await store.create_token(TokenDraft(name="ci", scope="run"), SECRET)

    assert not await store.has_tokens()


async def test_tokens_are_listed_by_falling_id_without_their_hashes(store: Store) -> None:
    made = [await a_token(store, f"token {number}") for number in range(3)]

    page = await store.list_tokens(limit=2)

    assert page.items == (made[2], made[1])
    assert page.total_count == 3
    assert (await store.list_tokens(limit=2, offset=2)).items == (made[0],)
    assert "hash" not in page.items[0].model_dump_json()


async def test_one_token_is_enough_and_a_revoked_one_still_counts(store: Store) -> None:
    assert not await store.has_tokens()

    await a_token(store)
    await store.revoke_token(1)

    assert await store.has_tokens()


async def test_a_revoked_token_stays_revoked_since_the_first_time(place: Place, store: Store) -> None:
    token = await a_token(store)
    revoked = await store.revoke_token(token.id)
    assert revoked.revoked_at == await store.now()

    await place.clock.advance(100)

    assert await store.revoke_token(token.id) == revoked
    assert await store.find_token(token.id) == (revoked, hash_secret(SECRET))
    assert not revoked.is_valid(await store.now())


async def test_a_last_use_is_noted_once_a_minute(place: Place, store: Store) -> None:
    token = await a_token(store)
    await store.touch_token(token.id)
    first = await store.now()

    await place.clock.advance(TOUCH_SECONDS - 1)
    await store.touch_token(token.id)
    within = await store.find_token(token.id)
    await place.clock.advance(2)
    await store.touch_token(token.id)
    after = await store.find_token(token.id)

    assert within
    assert after
    assert within[0].last_used_at == first
    assert after[0].last_used_at == await store.now()


async def test_lines_of_the_audit_log_come_back_by_falling_id(store: Store) -> None:
    drafts = [
        line("create_agent", target="/api/agents", made="/api/agents/1", peer="127.0.0.1", request_id="ab"),
        line("delete_agent", token_id=2**40, status=403),
        line(actor="local"),
    ]
    made = [await store.append_audit(each, max_entries=10) for each in drafts]

    assert [entry.id for entry in made] == [1, 2, 3]
    assert made[0] == AuditEntry(id=1, at=await store.now(), **drafts[0].model_dump())
    assert await store.list_audit() == made[::-1]
    assert await store.list_audit(limit=1, before_id=3) == [made[1]]
    assert await store.list_audit(before_id=1) == []


async def test_an_audit_log_keeps_its_newest_lines(store: Store) -> None:
    for _ in range(250):
        await store.append_audit(line(), max_entries=120)

    kept = await ids_of(store)

    assert kept == list(range(250, 80, -1))
    assert (await store.append_audit(line(), max_entries=1)).id == 251


async def test_an_audit_log_of_no_lines_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match="max_entries must be 1 or more, got 0"):
        await store.append_audit(line(), max_entries=0)
    with pytest.raises(InvalidInputError, match="limit must be 1 or more"):
        await store.list_audit(limit=0)

    assert await store.list_audit() == []


async def test_a_store_of_an_older_release_gets_tokens_and_an_audit_log(shared_place: Place) -> None:
    older = shared_place.make()
    await older.open()
    agent = await older.create_agent(draft())
    await older.close()
    # MongoDB makes collections when they are written to.
    if isinstance(shared_place, SqlitePlace):
        with closing(sqlite3.connect(shared_place.path)) as connection:
            connection.executescript("DROP TABLE tokens; DROP TABLE audit;")

    store = shared_place.make()
    await store.open()

    assert await store.get_agent(agent.id) == agent
    assert not await store.has_tokens()
    assert (await a_token(store)).id == 1
    assert (await store.append_audit(line(), max_entries=10)).id == 1
