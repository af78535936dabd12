"""Names are resolved once, every address is checked, and nothing else is connected to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from harness.egress.decision import Decision, Verdict
from harness.egress.gate import Gate, Outside, RefusedError
from harness.egress.policy import Address, Place, parse_networks, parse_place, parse_rule

LOOPBACK = parse_networks("127.0.0.0/8, ::1")


class Names:
    """A name server that a test tells what to answer, one answer after the other; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if not answer:
            raise OSError("no such name")
        return [ip_address(one) for one in answer]


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[str]]]:
    met: list[str] = []

    def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer.get_extra_info("sockname")[0])
        writer.transport.abort()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], met


async def ask(
    names: Names, place: str, *rules: str, private: bool = False
) -> tuple[RefusedError | None, Decision]:
    """Ask a gate for a place; return its refusal, if it is one, and the decision."""
    decisions: list[Decision] = []
    outside = Outside(private=LOOPBACK if private else (), resolve=names)
    gate = Gate([parse_rule(rule) for rule in rules], outside, decisions.append)
    refused = None
    try:
        _, writer = await gate.open(parse_place(place))
    except RefusedError as error:
        refused = error
    else:
        gate.close(writer)
        # The loop closes it at its next turn.
        await asyncio.sleep(0)
    assert not outside.connections.locked()
    (decision,) = decisions
    return refused, decision


async def test_a_place_that_is_not_listed_is_not_even_looked_up() -> None:
    names = Names(["1.1.1.1"])

    refused, decision = await ask(names, "other.example:443", "example.com:443")

    assert refused is not None
    assert refused.status == 403
    assert 'add "other.example:443" to egress' in str(refused)
    assert decision.verdict is Verdict.REFUSED
    assert names.asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["fd00:ec2::254"],
        ["::ffff:7f00:1"],
        ["1.1.1.1", "10.0.0.1"],
    ],
)
async def test_a_name_behind_which_any_address_is_not_public_is_refused(addresses: list[str]) -> None:
    refused, decision = await ask(Names(addresses), "example.com:443", "example.com:443")

    assert refused is not None
    assert refused.status == 403
    assert decision.verdict is Verdict.REFUSED
    assert decision.address == addresses[-1]
    # The agent learns nothing of the network it does not reach.
    assert addresses[-1] not in str(refused)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "[fd00:ec2::254]", "127.0.0.1", "[::1]", "[::ffff:a9fe:a9fe]"]
)
async def test_a_listed_address_is_checked_as_a_name_is(address: str) -> None:
    names = Names([])

    refused, _ = await ask(names, f"{address}:80", f"{address}:80")

    assert refused is not None
    assert refused.status == 403
    assert names.asked == []


async def test_a_name_that_answers_differently_the_next_time_changes_nothing() -> None:
    async with listening() as (port, met):
        names = Names(["127.0.0.2"], ["127.0.0.3"])
        refused, decision = await ask(
            names, f"rebinding.example:{port}", f"rebinding.example:{port}", private=True
        )

    assert refused is not None  # nothing listens there, and it was not asked again
    assert decision.address == "127.0.0.2"
    assert names.asked == ["rebinding.example"]
    assert met == []


async def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async with listening() as (port, met):
        names = Names(["127.0.0.2", "127.0.0.1"])
        refused, decision = await ask(names, f"example.com:{port}", f"example.com:{port}", private=True)
        assert met == ["127.0.0.1"]

    assert refused is None
    assert decision == Decision(Verdict.ALLOWED, f"example.com:{port}", "127.0.0.1")


async def test_a_name_that_there_is_not_is_told_as_such() -> None:
    refused, decision = await ask(Names([]), "example.com:443", "*.com.example:1", "example.com:443")

    assert refused is not None
    assert refused.status == 502
    assert decision.verdict is Verdict.FAILED
    assert "could not be resolved" in decision.why


async def test_all_runs_together_have_so_many_connections() -> None:
    outside = Outside(private=LOOPBACK, max_connections=1)
    async with listening() as (port, _):
        decisions: list[Decision] = []
        gate = Gate([parse_rule(f"127.0.0.1:{port}")], outside, decisions.append)
        place = Place("127.0.0.1", port)
        _, writer = await gate.open(place)
        with pytest.raises(RefusedError, match="too many") as caught:
            await gate.open(place)
        gate.close(writer)
        _, writer = await gate.open(place)
        gate.close(writer)
        await asyncio.sleep(0)

    assert caught.value.status == 503
    assert [decision.verdict for decision in decisions] == ["allowed", "failed", "allowed"]


async def test_the_systems_own_names_are_resolved() -> None:
    outside = Outside()
    try:
        assert ip_address("127.0.0.1") in await outside.resolve("localhost")
    finally:
        outside.close()
