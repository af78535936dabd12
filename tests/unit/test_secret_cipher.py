from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InvalidInputError, SecretDamagedError, SecretKeyError
from harness.secrets.cipher import SecretCipher, generate_key, looks_encrypted, parse_keys
from harness.secrets.rules import check_secret_value

OLD, NEW = b"o" * 32, b"n" * 32
VALUE = "correct horse battery staple"


def cipher(*keys: bytes, store_id: str = "store") -> SecretCipher:
    return SecretCipher(keys or (OLD,), store_id=store_id)


@given(value=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_value_comes_back(value: str) -> None:
    assert cipher().decrypt("key", cipher().encrypt("key", value)) == value


def test_a_ciphertext_shows_neither_value_nor_name_and_is_new_each_time() -> None:
    first, second = cipher().encrypt("the-name", VALUE), cipher().encrypt("the-name", VALUE)

    assert first != second
    for word in (*VALUE.split(), "the-name", "store"):
        assert word.encode() not in first
    assert looks_encrypted(first)
    assert not looks_encrypted(VALUE.encode())


@pytest.mark.parametrize("name", ["other", "ke", "key\0"])
def test_a_ciphertext_does_not_open_under_another_name(name: str) -> None:
    with pytest.raises(SecretDamagedError, match="set it again"):
        cipher().decrypt(name, cipher().encrypt("key", VALUE))


def test_a_ciphertext_does_not_open_in_another_store() -> None:
    with pytest.raises(SecretDamagedError, match="another name or store"):
        cipher(store_id="theirs").decrypt("key", cipher().encrypt("key", VALUE))


def test_a_change_of_any_byte_is_noticed() -> None:
    ciphertext = cipher().encrypt("key", VALUE)
    for at in range(len(ciphertext)):
        changed = bytearray(ciphertext)
        changed[at] ^= 1
        with pytest.raises((SecretDamagedError, SecretKeyError)) as caught:
            cipher().decrypt("key", bytes(changed))
        assert VALUE not in str(caught.value)
    for size in range(len(ciphertext)):
        with pytest.raises((SecretDamagedError, SecretKeyError)):
            cipher().decrypt("key", ciphertext[:size])


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    before = cipher(OLD).encrypt("key", VALUE)
    both = cipher(NEW, OLD)

    assert both.decrypt("key", before) == VALUE
    assert not both.is_current(before)
    after = both.encrypt("key", VALUE)
    assert both.is_current(after)
    assert cipher(NEW).decrypt("key", after) == VALUE


def test_a_key_that_is_missing_is_named_and_not_shown() -> None:
    with pytest.raises(SecretKeyError, match="HARNESS_SECRETS_KEY") as caught:
        cipher(NEW).decrypt("key", cipher(OLD).encrypt("key", VALUE))

    assert OLD.hex() not in str(caught.value)


def test_keys_are_read_as_they_are_made() -> None:
    first, second = generate_key(), generate_key()

    assert first != second
    assert [len(key) for key in parse_keys(first)] == [32]
    assert parse_keys(f"{first}, {second}") == parse_keys(f"\n{first}\n{second}\n")
    assert len(parse_keys(f"{first},{second}")) == 2
    # openssl rand -base64 32
    assert parse_keys(first.replace("-", "+").replace("_", "/")) == parse_keys(first)


@pytest.mark.parametrize("text", ["", " , ", "password", "é" * 44, "A" * 44, "A" * 43, "A" * 86 + "=="])
def test_what_is_no_key_is_refused_without_a_quote(text: str) -> None:
    with pytest.raises(ValueError, match="harness secrets keygen") as caught:
        parse_keys(f"{text}")

    assert not text.strip(" ,") or text not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "too short"),
        ("seven77", "too short"),
        (" \n seven77 \n ", "too short"),
        ("aaaabbbbcccc", "too uniform"),
        ("with a \0 byte", "NUL"),
        ("surrogate \ud800 alone", "surrogate"),
        ("é" * 8193, "16,386 bytes"),
    ],
)
def test_a_value_that_can_not_be_masked_or_handed_over_is_refused(value: str, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint) as caught:
        check_secret_value(value)

    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["8 chars!", "xyza" * 4096, "-----BEGIN KEY-----\nMII\n-----END KEY-----\n", "pässwörd"]
)
def test_a_value_that_is_distinct_is_accepted(value: str) -> None:
    check_secret_value(value)
