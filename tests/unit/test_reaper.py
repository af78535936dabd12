from __future__ import annotations

import asyncio
from typing import cast

import pytest

from harness.sandbox import reaper as reaper_module
from harness.sandbox.dispatch import SETTLING_SECONDS, Dispatch
from harness.sandbox.reaper import AT_ONCE, MAX_WAIT_SECONDS, PAUSE_SECONDS, Reaper
from harness.testing import FakeClock


class Connection:
    """Stands in for a writer: all that is asked of it is its transport's end."""

    def __init__(self) -> None:
        self.transport = self
        self.is_closed = False

    def abort(self) -> None:
        self.is_closed = True


class Bench:
    """A reaper whose removals take until they are let through."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.dispatch = Dispatch(self.clock)
        self.reaper = Reaper(self.remove, self.dispatch, self.clock)
        self.begun: list[str] = []
        self.gone: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.connections: dict[str, Connection] = {}

    async def remove(self, name: str) -> None:
        assert self.connections[name].is_closed
        self.begun.append(name)
        await self.gate.wait()
        self.gone.append(name)

    async def take(self, *names: str) -> None:
        for name in names:
            self.connections[name] = Connection()
            await self.reaper.take(name, cast("asyncio.StreamWriter", self.connections[name]))
        await settle_loop()


async def settle_loop() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_container_is_removed_a_moment_later_and_its_connection_closed_no_sooner(
    bench: Bench,
) -> None:
    await bench.take("a")
    assert (bench.begun, bench.connections["a"].is_closed, "a" in bench.reaper) == ([], False, True)

    await bench.clock.advance(PAUSE_SECONDS)

    assert (bench.gone, bench.connections["a"].is_closed, "a" in bench.reaper) == (["a"], True, False)


async def test_only_a_few_are_removed_at_a_time(bench: Bench) -> None:
    bench.gate.clear()
    await bench.take(*"abcdef")
    await bench.clock.advance(10)
    assert bench.begun == list("abcdef")[:AT_ONCE]

    bench.gate.set()
    await settle_loop()
    await bench.clock.advance(10)
    assert bench.gone == list("abcdef")


async def test_a_removal_gives_way_to_dispatch(bench: Bench) -> None:
    with bench.dispatch:
        await bench.take("a")
        await bench.clock.advance(MAX_WAIT_SECONDS - PAUSE_SECONDS)
        assert bench.begun == []
    await bench.clock.advance(PAUSE_SECONDS)
    assert bench.begun == ["a"]


async def test_each_of_several_dispatches_is_given_way_to(bench: Bench) -> None:
    with bench.dispatch:
        with bench.dispatch:
            await bench.take("a")
        await bench.clock.advance(2 * PAUSE_SECONDS)
        assert bench.begun == []
    await bench.clock.advance(SETTLING_SECONDS + PAUSE_SECONDS)
    assert bench.begun == ["a"]


async def test_a_dispatch_that_fails_holds_nothing_off_any_more(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no"), bench.dispatch:
        raise ValueError("no")
    await bench.take("a")
    await bench.clock.advance(SETTLING_SECONDS + PAUSE_SECONDS)
    assert bench.begun == ["a"]


async def test_dispatch_without_end_delays_each_removal_by_a_bound(bench: Bench) -> None:
    bench.gate.clear()
    with bench.dispatch:
        await bench.take(*"abcd")
        await bench.clock.advance(MAX_WAIT_SECONDS)
        assert len(bench.begun) == AT_ONCE
        # Those behind them have waited as long, so they begin as soon as there is room: nothing is made to wait twice.
        bench.gate.set()
        await settle_loop()
        assert bench.gone == list("abcd")


async def test_one_container_too_many_makes_whoever_brings_it_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper_module, "MAX_CONTAINERS", 3)
    bench.gate.clear()
    with bench.dispatch:
        await bench.take(*"abc")
        bringing = asyncio.create_task(bench.take("d"))
        await bench.clock.advance(PAUSE_SECONDS)
        # So many are enough to let dispatch wait for a change.
        assert len(bench.begun) == AT_ONCE
        assert not bringing.done()

        bench.gate.set()
        await settle_loop()
        await bringing
    await bench.clock.advance(SETTLING_SECONDS + PAUSE_SECONDS)
    assert sorted(bench.gone) == list("abcd")


async def test_a_container_that_was_brought_and_not_taken_yet_is_not_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper_module, "MAX_CONTAINERS", 2)
    bench.gate.clear()
    await bench.take("a", "b")
    bringing = asyncio.create_task(bench.take("c"))
    await settle_loop()
    bringing.cancel()
    await settle_loop()

    bench.gate.set()
    settling = asyncio.create_task(bench.reaper.settle())
    await settle_loop()
    await bench.clock.advance(PAUSE_SECONDS)
    await settling

    assert sorted(bench.gone) == list("abc")


async def test_settling_gives_way_to_nothing_and_returns_when_all_is_gone(bench: Bench) -> None:
    with bench.dispatch:
        await bench.take(*"abc")
        settling = asyncio.create_task(bench.reaper.settle())
        await bench.clock.advance(PAUSE_SECONDS)
        await settling

    assert sorted(bench.gone) == list("abc")
    await bench.reaper.settle()


async def test_a_removal_that_was_cancelled_is_made_up_for_by_settling(bench: Bench) -> None:
    # As `asyncio.run` cancels every task before it has anything closed.
    bench.gate.clear()
    await bench.take(*"abc")
    await bench.clock.advance(PAUSE_SECONDS)
    assert bench.begun
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settle_loop()
    assert bench.gone == []

    bench.gate.set()
    await bench.reaper.settle()

    assert sorted(bench.gone) == list("abc")


async def test_a_removal_that_fails_unexpectedly_keeps_nobody_waiting(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(name: str) -> None:
        raise RuntimeError(f"no luck with {name}")

    bench.reaper._remove = fail
    await bench.take("a", "b")
    tasks = list(bench.reaper._tasks.values())
    await bench.clock.advance(PAUSE_SECONDS)
    await bench.reaper.settle()

    assert "a" not in bench.reaper
    assert [str(task.exception()) for task in tasks] == ["no luck with a", "no luck with b"]
