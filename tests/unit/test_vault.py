from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from harness.errors import InvalidInputError, SecretDamagedError, SecretKeyError, SecretNotFoundError
from harness.secrets.cipher import generate_key
from harness.settings import Settings
from harness.testing import FakeClock, MemoryStore
from harness.vault import SecretVault

VALUE = "correct horse battery staple"
OLD, NEW = generate_key(), generate_key()


def keyed(*keys: str) -> Settings:
    return Settings(secrets_key=SecretStr(",".join(keys)))


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore(clock=FakeClock())
    await store.open()
    yield store
    await store.close()


async def test_a_value_goes_in_by_name_and_comes_out_for_a_run(store: MemoryStore) -> None:
    vault = SecretVault(store, keyed(OLD))

    await vault.put("a", VALUE)
    await vault.put("b", VALUE[::-1])

    assert await vault.reveal(["b", "a", "b"]) == {"a": VALUE, "b": VALUE[::-1]}
    assert await vault.reveal([]) == {}
    assert VALUE not in repr(await vault.list())
    await vault.delete("a")
    with pytest.raises(SecretNotFoundError, match="no secret 'a'; store it with: harness secrets set a"):
        await vault.reveal(["a", "b"])


async def test_without_a_key_nothing_is_stored_and_the_remedy_is_told(store: MemoryStore) -> None:
    with pytest.raises(SecretKeyError, match="harness secrets keygen"):
        await SecretVault(store, Settings()).put("a", VALUE)

    assert (await store.list_secrets()).total_count == 0


async def test_without_a_key_secrets_can_be_listed_and_deleted(store: MemoryStore) -> None:
    await SecretVault(store, keyed(OLD)).put("a", VALUE)
    vault = SecretVault(store, Settings())

    assert [secret.name for secret in (await vault.list()).items] == ["a"]
    with pytest.raises(SecretKeyError):
        await vault.reveal(["a"])
    await vault.delete("a")
    with pytest.raises(SecretNotFoundError):
        await vault.delete("a")


async def test_a_bad_name_or_value_is_refused_before_a_key_is_asked_for(store: MemoryStore) -> None:
    vault = SecretVault(store, Settings())

    with pytest.raises(InvalidInputError, match="no name"):
        await vault.put("../a", VALUE)
    with pytest.raises(InvalidInputError, match="too short"):
        await vault.put("a", "short")


async def test_rotation_encrypts_anew_what_is_under_another_key(store: MemoryStore) -> None:
    for number in range(205):
        await SecretVault(store, keyed(OLD)).put(f"s{number}", f"{VALUE} {number}")
    both = SecretVault(store, keyed(NEW, OLD))
    await both.put("new", VALUE)

    assert await both.rotate() == 205
    assert await both.rotate() == 0

    only_new = SecretVault(store, keyed(NEW))
    assert await only_new.reveal(["s0", "s204", "new"]) == {
        "s0": f"{VALUE} 0",
        "s204": f"{VALUE} 204",
        "new": VALUE,
    }
    with pytest.raises(SecretKeyError):
        await SecretVault(store, keyed(OLD)).reveal(["s0"])


async def test_rotation_leaves_a_value_alone_that_is_set_meanwhile(store: MemoryStore) -> None:
    await SecretVault(store, keyed(OLD)).put("a", VALUE)
    vault = SecretVault(store, keyed(NEW, OLD))
    get_secrets = store.get_secrets

    async def get_then_set(names: object) -> object:
        found = await get_secrets(["a"])
        await vault.put("a", "the value of somebody else")
        return found

    store.get_secrets = get_then_set  # type: ignore[method-assign, assignment]
    assert await vault.rotate() == 0

    store.get_secrets = get_secrets  # type: ignore[method-assign]
    assert await vault.reveal(["a"]) == {"a": "the value of somebody else"}


async def test_a_ciphertext_moved_to_another_name_does_not_open(store: MemoryStore) -> None:
    vault = SecretVault(store, keyed(OLD))
    await vault.put("theirs", VALUE)
    await store.put_secret("mine", (await store.get_secrets(["theirs"]))["theirs"])

    with pytest.raises(SecretDamagedError, match="'mine'"):
        await vault.reveal(["mine"])


async def test_a_key_file_is_read_anew_each_time(store: MemoryStore, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{OLD}\n")
    vault = SecretVault(store, Settings(secrets_key_file=file))
    await vault.put("a", VALUE)

    file.write_text(f"{NEW}\n{OLD}\n")
    assert await vault.rotate() == 1
    file.write_text(f"{NEW}\n")

    assert await vault.reveal(["a"]) == {"a": VALUE}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "there is no key"),
        (b"password", "key 1 is not 32 bytes"),
        (f"{OLD}\nhunter2".encode(), "key 2 is not 32 bytes"),
        ("schlüssel".encode(), "more than keys"),
        (b"A" * 100_000, "larger than 65,536 bytes"),
    ],
    ids=["none", "empty", "short", "one of two", "no ASCII", "large"],
)
async def test_a_key_file_of_no_use_is_named_without_its_content(
    store: MemoryStore, tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(SecretKeyError, match=complaint) as caught:
        await SecretVault(store, Settings(secrets_key_file=file)).put("a", VALUE)

    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_key_and_a_key_file_exclude_each_other(store: MemoryStore, tmp_path: Path) -> None:
    settings = Settings(secrets_key=SecretStr(OLD), secrets_key_file=tmp_path / "keys")

    with pytest.raises(SecretKeyError, match="leave one of them out"):
        await SecretVault(store, settings).put("a", VALUE)
