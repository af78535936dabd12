"""Hostile agents and clients that need no time get nowhere; those that use up the machine run with `./justw abuse`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.abuse import clients, escape, lying, reach
from tests.abuse.__main__ import CASES, run_cases
from tests.abuse.case import Case, HarmError, Seen, attempts, nothing_got
from tests.abuse.clients import floods
from tests.abuse.clients.target import ClientCase, Target, require
from tests.abuse.report import BEGIN, DOCUMENT, END

from harness.models import Reason


@pytest.mark.usefixtures("sandbox_image")
async def test_agents_that_try_to_escape_or_lie_get_nowhere_and_a_victim_misses_nothing(
    tmp_path: Path,
) -> None:
    results, neighbours = await run_cases((*escape.CASES, *lying.CASES, *reach.CASES), tmp_path)

    assert [f"{one.case.attack}: {one.observed}" for one in results if not one.is_held] == []
    assert neighbours.missed == []
    assert neighbours.fires > 0
    assert neighbours.wrong_answers == 0


@pytest.mark.usefixtures("sandbox_image")
async def test_clients_with_bad_intent_get_nowhere_and_a_victim_misses_nothing(tmp_path: Path) -> None:
    results, neighbours = await run_cases(
        tuple(case for case in clients.CASES if case not in floods.CASES), tmp_path
    )

    assert [f"{one.case.attack}: {one.observed}" for one in results if not one.is_held] == []
    assert neighbours.missed == []
    assert neighbours.fires > 0
    assert neighbours.wrong_answers == 0


@pytest.mark.usefixtures("sandbox_image")
async def test_a_client_that_gets_somewhere_is_told_of(tmp_path: Path) -> None:
    async def believes(target: Target) -> str:
        require(False, "it was believed")
        return ""

    async def writes(target: Target) -> str:
        async with target.session() as session:
            reply = await session.ask("POST", "/api/agents", json={"name": "mine", "code": "1"})
        return f"{reply.status}"

    cases = (
        ClientCase("test", "be believed", "", believes),
        ClientCase("test", "write what it may write", "", writes),
    )
    results, _ = await run_cases(cases, tmp_path)

    assert [one.is_held for one in results] == [False, False]
    assert results[0].observed == "it was believed"
    assert results[1].observed.startswith("agents")
    assert results[1].observed.endswith("of others have changed; 201")


@pytest.mark.usefixtures("sandbox_image")
async def test_an_agent_that_gets_somewhere_is_told_of(tmp_path: Path) -> None:
    def gets_its_number(seen: Seen) -> str:
        seen.require(seen.task.reason is Reason.TIMEOUT, "it ended")
        return ""

    harm = Case("test", "what anybody may", "", attempts({"its number": "os.getpid()"}), nothing_got)
    early = Case("test", "end early", "", "pass", gets_its_number)
    results, _ = await run_cases((harm, early), tmp_path)

    assert [one.is_held for one in results] == [False, False]
    assert results[0].observed.startswith("got ['its number: ")
    assert results[1].observed == "it ended; task completed, completed, None"
    assert issubclass(HarmError, AssertionError)


def test_the_document_tells_of_every_case() -> None:
    told = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    assert [case.attack for case in CASES if f"| {case.attack} |" not in told] == []
