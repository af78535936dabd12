from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.tokens import (
    ApiToken,
    CreatedToken,
    Scope,
    TokenDraft,
    TokenText,
    hash_secret,
    new_secret,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCANNERS_PATTERN = r"agh_[1-9][0-9]*_[0-9A-Za-z]{49}"


@given(st.integers(1, 2**63 - 1))
def test_a_token_is_read_as_it_was_rendered(token_id: int) -> None:
    token = TokenText(token_id, new_secret())

    assert TokenText.parse(token.render()) == token
    assert re.fullmatch(SCANNERS_PATTERN, token.render())


@given(st.text(max_size=100) | st.from_regex(rf"\A{SCANNERS_PATTERN}\Z"))
def test_what_was_never_handed_out_is_no_token(text: str) -> None:
    # One in 62**6 would have a checksum that is right by chance.
    assert TokenText.parse(text) is None


@given(st.data())
def test_a_mistyped_token_is_no_token(data: st.DataObject) -> None:
    text = TokenText(7, new_secret()).render()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("aZ09_- é").filter(lambda character: character != text[place]))

    assert TokenText.parse(text[:place] + other + text[place + 1 :]) is None
    assert TokenText.parse(text[:place] + text[place + 1 :]) is None


@pytest.mark.parametrize("token_id", [0, -1, 2**63, 10**18 * 99])
def test_an_id_that_no_store_gives_is_no_token(token_id: int) -> None:
    assert TokenText.parse(TokenText(token_id, new_secret()).render()) is None


def test_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(1000)}

    assert len(made) == 1000
    assert {len(secret) for secret in made} == {43}


def test_a_token_matches_the_hash_of_its_own_secret_alone() -> None:
    token, other = TokenText(1, new_secret()), TokenText(1, new_secret())

    assert token.matches(hash_secret(token.secret))
    assert not token.matches(hash_secret(other.secret))
    assert not token.matches("0" * 64)
    assert token.secret not in hash_secret(token.secret)


def test_a_secret_shows_in_no_repr() -> None:
    token = TokenText(1, new_secret())
    made = CreatedToken(token=ApiToken(id=1, name="ci", scope="run", created_at=NOW), text=token.render())

    assert token.secret not in repr(token)
    assert token.secret not in f"{made!r} {made}"
    assert token.render() in made.model_dump_json()


@pytest.mark.parametrize(
    ("changes", "at", "is_valid"),
    [
        ({}, timedelta(days=9999), True),
        ({"expires_at": NOW + timedelta(days=1)}, timedelta(days=1, seconds=-1), True),
        ({"expires_at": NOW + timedelta(days=1)}, timedelta(days=1), False),
        ({"revoked_at": NOW + timedelta(days=1)}, timedelta(0), False),
    ],
)
def test_a_token_is_valid_until_it_expires_or_is_revoked(
    changes: dict[str, datetime], at: timedelta, is_valid: bool
) -> None:
    token = ApiToken(id=1, name="ci", scope="run", created_at=NOW).model_copy(update=changes)

    assert token.is_valid(NOW + at) is is_valid


def test_each_scope_includes_those_before_it() -> None:
    assert Scope.NONE < Scope.of("read") < Scope.of("run") < Scope.of("admin")


@pytest.mark.parametrize("name", ["", " ci", "ci\n", "\x1b[2J", "17", "x" * 101])
def test_a_name_is_one_that_can_be_shown(name: str) -> None:
    with pytest.raises(ValidationError):
        TokenDraft(name=name, scope="read")
