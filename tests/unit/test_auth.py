"""The gate of the API, on a store in memory and a clock that stands still."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from unittest import mock

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from harness.api import tokens
from harness.errors import AuthenticationError, PermissionDeniedError, RateLimitedError, StoreBusyError
from harness.settings import Settings
from harness.testing import FakeClock, MemoryStore
from harness.tokens import CreatedToken, Scope, ScopeName, TokenDraft, TokenText, new_secret
from harness_server.auth import ALLOWANCE, FAILURES_AT_ONCE, Gate, Principal, parse_bearer


class Site:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.gate = self.make_gate()

    def make_gate(self, **settings: object) -> Gate:
        return Gate(self.store, clock=self.clock, settings=Settings.model_validate(settings))

    async def token(self, scope: ScopeName = "admin", days: float | None = None) -> CreatedToken:
        expires_at = None if days is None else self.clock.now() + timedelta(days=days)
        return await tokens.create(self.store, TokenDraft(name="ci", scope=scope, expires_at=expires_at))

    async def ask(self, *headers: str, peer: str = "127.0.0.1", gate: Gate | None = None) -> Principal:
        transport = mock.Mock()
        transport.get_extra_info = {"peername": (peer, 1)}.get
        request = make_mocked_request("GET", "/api/agents", transport=transport)
        request = request.clone(headers=[("Authorization", header) for header in headers])
        principal = await (gate or self.gate).admit(request)
        self.allowance = request.get(ALLOWANCE)
        return principal

    async def show(self, text: str, **given: str) -> Principal:
        return await self.ask(f"Bearer {text}", **given)  # type: ignore[arg-type]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.store.open()
    yield site
    await site.store.close()


async def test_without_a_token_this_machine_may_do_all(site: Site) -> None:
    principal = await site.ask()

    assert (principal.scope, principal.actor, principal.token) == (Scope.ADMIN, "local", None)
    assert (await site.ask(peer="::1")).scope is Scope.ADMIN
    assert (await site.ask(peer="::ffff:127.0.0.1")).scope is Scope.ADMIN


@pytest.mark.parametrize("peer", ["10.0.0.1", "::2", "::ffff:10.0.0.1", "", "unix"])
async def test_without_a_token_nobody_else_may_do_anything(site: Site, peer: str) -> None:
    with pytest.raises(AuthenticationError, match="only this machine may ask"):
        await site.ask(peer=peer)


async def test_where_others_could_reach_it_no_token_is_no_way_in(site: Site) -> None:
    gate = site.make_gate(host="0.0.0.0")

    with pytest.raises(AuthenticationError, match="harness tokens create"):
        await site.ask(gate=gate)


async def test_with_the_first_token_the_door_is_shut(site: Site) -> None:
    await site.ask()

    made = await site.token("run")

    with pytest.raises(AuthenticationError, match="this takes a token"):
        await site.ask()
    principal = await site.show(made.text, peer="10.0.0.1")
    assert (principal.scope, principal.actor, principal.key) == (Scope.RUN, "ci", 1)


@pytest.mark.parametrize("is_new", [True, False])
async def test_it_stays_shut_when_all_tokens_are_gone(site: Site, is_new: bool) -> None:
    made = await site.token(days=1)
    await site.show(made.text)
    await site.clock.advance(86400)
    gate = site.make_gate() if is_new else site.gate

    for _ in range(2):
        with pytest.raises(AuthenticationError, match="this takes a token"):
            await site.ask(gate=gate)
        with pytest.raises(AuthenticationError, match="not valid"):
            await site.ask(f"Bearer {made.text}", gate=gate)
        await site.store.revoke_token(1)


async def test_a_revoked_token_is_refused_from_the_next_request_on(site: Site) -> None:
    made = await site.token()
    await site.show(made.text)

    await site.store.revoke_token(made.token.id)

    with pytest.raises(AuthenticationError, match="not valid"):
        await site.show(made.text)


async def test_another_tokens_number_or_secret_opens_nothing(site: Site) -> None:
    first, second = await site.token(), await site.token()
    parsed = TokenText.parse(second.text)
    assert parsed
    for forged in (
        TokenText(first.token.id, parsed.secret).render(),
        TokenText(99, parsed.secret).render(),
        TokenText(second.token.id, new_secret()).render(),
        second.text + "x",
        second.text.lower(),
    ):
        with pytest.raises(AuthenticationError, match="not valid"):
            await site.show(forged)


async def test_a_secret_is_compared_in_constant_time_also_where_there_is_no_token(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await site.token()
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def recording(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    await site.show(made.text)
    for token_id in (made.token.id, 99):
        with pytest.raises(AuthenticationError):
            await site.show(TokenText(token_id, new_secret()).render())

    assert [(len(one), len(other)) for one, other in compared] == [(64, 64)] * 3


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Basic Y2k6Y2k="],
        ["Token {}"],
        ["{}"],
        ["Bearer {}", "Bearer {}"],
        ["Bearer{}"],
    ],
)
async def test_a_token_that_is_not_shown_as_a_bearer_token_is_none(site: Site, headers: list[str]) -> None:
    text = (await site.token()).text

    with pytest.raises(AuthenticationError, match="this takes a token"):
        await site.ask(*(header.format(text) for header in headers))


async def test_a_scope_reaches_down_and_not_up(site: Site) -> None:
    principal = await site.show((await site.token("run")).text)

    principal.check(Scope.READ)
    principal.check(Scope.RUN)
    with pytest.raises(
        PermissionDeniedError, match="takes a token with the scope admin, and the token 'ci' has run"
    ):
        principal.check(Scope.ADMIN)


async def test_a_last_use_is_noted_and_reading_needs_no_write(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await site.token()
    await site.show(made.text)
    assert (await site.store.list_tokens()).items[0].last_used_at == site.clock.now()

    async def fail(_token_id: int) -> None:
        raise StoreBusyError("locked")

    monkeypatch.setattr(site.store, "touch_token", fail)
    await site.show(made.text)
    await site.clock.advance(61)
    await site.show(made.text)


async def test_guessing_is_slowed_down_for_one_address_and_not_for_those_who_know(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    known, new = await site.token(), await site.token()
    await site.show(known.text)
    wrong = TokenText(1, new_secret()).render()
    for _ in range(FAILURES_AT_ONCE):
        with pytest.raises(AuthenticationError):
            await site.show(wrong)
    caplog.clear()

    for text in (wrong, "nonsense", new.text):
        with pytest.raises(RateLimitedError, match="too many wrong tokens came from 127") as refused:
            await site.show(text)
        assert refused.value.retry_after_seconds == 2
    assert not caplog.records
    await site.show(known.text)
    await site.show(new.text, peer="10.0.0.1")
    await site.clock.advance(2)
    await site.show(new.text)


async def test_no_log_line_holds_a_token(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="harness_server")
    caplog.set_level(logging.INFO, logger="aiosqlite")
    made = await site.token()
    wrong = TokenText(1, new_secret())
    with pytest.raises(AuthenticationError) as refused:
        await site.show(wrong.render())
    await site.show(made.text)

    assert [record.__dict__["action"] for record in caplog.records] == ["token_refused"]
    for said in (caplog.text, str(refused.value), repr([vars(record) for record in caplog.records])):
        assert wrong.secret[:8] not in said


async def test_each_token_has_a_rate_of_its_own(site: Site) -> None:
    gate = site.make_gate(rate_limit_per_second=1, rate_limit_burst=2)
    first, second = await site.token(), await site.token()
    for _ in range(2):
        await site.ask(f"Bearer {first.text}", gate=gate)
    assert site.allowance
    assert site.allowance.remaining == 0

    with pytest.raises(RateLimitedError, match=r"more than 1 requests a second; wait 1 s") as refused:
        await site.ask(f"Bearer {first.text}", gate=gate)

    assert refused.value.retry_after_seconds == 1
    await site.ask(f"Bearer {second.text}", gate=gate)
    await site.clock.advance(1)
    await site.ask(f"Bearer {first.text}", gate=gate)


async def test_a_rate_of_0_is_none(site: Site) -> None:
    gate = site.make_gate(rate_limit_per_second=0, rate_limit_burst=1)

    for _ in range(50):
        await site.ask(gate=gate)


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_header_is_read_without_a_crash(headers: list[str]) -> None:
    text = parse_bearer(headers)

    assert text is None or (len(headers) == 1 and text and headers[0].lower().startswith("bearer "))


@pytest.mark.parametrize("header", ["Bearer x", "bearer x", "BEARER  x", "Bearer x "])
def test_the_scheme_is_read_in_any_case(header: str) -> None:
    assert parse_bearer([header]) == "x"


async def test_one_token_leaves_half_of_the_connections_to_others(site: Site) -> None:
    gate = site.make_gate(max_connections=4)
    greedy, other = [
        await site.show((await site.token(scope)).text, gate=gate)  # type: ignore[arg-type]
        for scope in ("read", "run")
    ]

    with gate.under_way(greedy, None), gate.under_way(greedy, None):
        with (
            pytest.raises(RateLimitedError, match="2 requests with this token are under way"),
            gate.under_way(greedy, None),
        ):
            pass
        with gate.under_way(other, None):
            pass

    with gate.under_way(greedy, None):
        pass


async def test_whoever_sits_at_a_machine_without_tokens_has_all_connections(site: Site) -> None:
    gate = site.make_gate(max_connections=1)
    local = await site.ask(gate=gate)

    with gate.under_way(local, None), gate.under_way(local, None):
        pass


async def test_what_is_under_way_ends_with_its_token(site: Site) -> None:
    ends, stays = await site.token("read", days=1), await site.token("read")
    revoked = await site.token("read")
    connections = [mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock()]

    with (
        site.gate.under_way(await site.show(ends.text), connections[0]),
        site.gate.under_way(await site.show(revoked.text), connections[1]),
        site.gate.under_way(await site.show(revoked.text), connections[2]),
        site.gate.under_way(await site.show(stays.text), connections[3]),
    ):
        await site.gate.cut_off()
        assert not any(connection.abort.called for connection in connections)

        await site.store.revoke_token(revoked.token.id)
        await site.clock.advance(timedelta(days=1).total_seconds())
        await site.gate.cut_off()

    assert [connection.abort.called for connection in connections] == [True, True, True, False]
