from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest
from tests.contract.places import Place, SqlitePlace, draft

from harness.errors import InvalidInputError, SecretNotFoundError
from harness.ports import Store
from harness.secrets.cipher import SecretCipher
from harness.secrets.info import SecretInfo
from harness.secrets.rules import MAX_VALUE_BYTES

CIPHER = SecretCipher([b"k" * 32], store_id="any")


def encrypted(value: str = "the quick brown fox") -> bytes:
    return CIPHER.encrypt("key", value)


async def test_a_secret_comes_back_as_it_was_stored(store: Store) -> None:
    ciphertext = encrypted("x" * MAX_VALUE_BYTES)

    made = await store.put_secret("github-token", ciphertext)

    now = await store.now()
    assert made == SecretInfo(name="github-token", created_at=now, updated_at=now)
    assert await store.get_secrets(["github-token"]) == {"github-token": ciphertext}
    assert (await store.list_secrets()).items == (made,)


async def test_another_value_keeps_the_time_it_was_made(place: Place, store: Store) -> None:
    made = await store.put_secret("key", encrypted())
    await place.clock.advance(5)
    second = encrypted()

    changed = await store.put_secret("key", second)

    assert changed.created_at == made.created_at
    assert changed.updated_at == await store.now() > made.updated_at
    assert await store.get_secrets(["key"]) == {"key": second}
    assert (await store.list_secrets()).items == (changed,)


async def test_secrets_are_listed_by_name_in_pages(store: Store) -> None:
    names = ["b", "a", "C", "a.b", "a-b", "0"]
    for name in names:
        await store.put_secret(name, encrypted())

    first = await store.list_secrets(limit=4)
    second = await store.list_secrets(limit=4, offset=4)

    assert [secret.name for secret in (*first.items, *second.items)] == sorted(names)
    assert (first.total_count, second.total_count, second.offset) == (6, 6, 4)
    with pytest.raises(InvalidInputError, match="limit"):
        await store.list_secrets(limit=0)


async def test_only_secrets_that_are_there_are_given(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.put_secret(name, encrypted())

    assert set(await store.get_secrets(["a", "c", "nobody", "a"])) == {"a", "c"}
    assert await store.get_secrets([]) == {}


async def test_a_deleted_secret_is_gone(store: Store) -> None:
    await store.put_secret("key", encrypted())

    await store.delete_secret("key")

    assert await store.get_secrets(["key"]) == {}
    assert (await store.list_secrets()).total_count == 0
    with pytest.raises(SecretNotFoundError, match="'key'"):
        await store.delete_secret("key")


async def test_a_secret_is_encrypted_anew_only_if_nobody_set_it_meanwhile(place: Place, store: Store) -> None:
    before, after, other = encrypted(), encrypted(), encrypted("somebody else's")
    made = await store.put_secret("key", before)
    await place.clock.advance(5)

    assert await store.replace_secret("key", before, after)
    assert await store.get_secrets(["key"]) == {"key": after}
    assert (await store.list_secrets()).items == (made,)
    assert not await store.replace_secret("key", before, other)
    assert not await store.replace_secret("nobody", before, other)
    assert await store.get_secrets(["key"]) == {"key": after}


@pytest.mark.parametrize(
    "data", [b"", b"the value itself, by a mistake of ours", b"AHS1short", encrypted("x" * 20_000)]
)
async def test_nothing_but_a_ciphertext_is_stored(store: Store, data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="ciphertext") as caught:
        await store.put_secret("key", data)
    assert b"mistake" not in str(caught.value).encode()
    await store.put_secret("key", encrypted())
    with pytest.raises(InvalidInputError, match="ciphertext"):
        await store.replace_secret("key", encrypted(), data)


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "$where", "a/b", "é", "a\n", "x" * 65])
async def test_a_name_that_is_none_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInputError, match="no name for a secret"):
        await store.put_secret(name, encrypted())

    assert (await store.list_secrets()).total_count == 0


async def test_many_who_set_a_secret_at_once_make_one(real_place: Place) -> None:
    stores = [real_place.make() for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    values = [encrypted(f"value {number}") for number in range(12)]

    await asyncio.gather(
        *(stores[number % 4].put_secret("key", value) for number, value in enumerate(values))
    )

    assert (await stores[0].list_secrets()).total_count == 1
    assert (await stores[0].get_secrets(["key"]))["key"] in values


async def test_a_file_of_an_older_release_takes_secrets(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = SqlitePlace(tmp_path_factory.mktemp("old"))
    old = place.make()
    await old.open()
    agent = await old.create_agent(draft())
    await old.close()
    with closing(sqlite3.connect(place.path)) as connection:
        connection.execute("DROP TABLE secrets")

    store = place.make()
    await store.open()
    await store.put_secret("key", encrypted())

    assert (await store.list_secrets()).total_count == 1
    assert await store.get_agent(agent.id) == agent
    await place.clean()
