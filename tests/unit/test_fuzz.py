"""Readers of what strangers write hold for a moment, and fuzzing tells of what does not; ./justw fuzz takes longer."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.fuzz.fuzzing import GrowthError, HangError, fuzz
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_holds_for_a_moment(name: str) -> None:
    outcome = fuzz(TARGETS[name], seconds=0, seed=1, round_examples=50)

    assert outcome.examples >= 100
    assert 0 < outcome.slowest_seconds < 10


def test_a_crash_shows_its_example() -> None:
    def check(value: int) -> None:
        assert value < 1000

    with pytest.raises(AssertionError) as caught:
        fuzz(Target(st.integers(), check), seconds=5, seed=1)

    assert "value=1000" in "".join(caught.value.__notes__)


def test_an_example_that_hangs_is_told_of() -> None:
    def check(value: Any) -> None:
        while True:
            pass

    began = time.monotonic()
    with pytest.raises(HangError, match=r"longer than 0\.05 s"):
        fuzz(Target(st.none(), check), seconds=60, seed=1, example_seconds=0.05)
    assert time.monotonic() - began < 30


def test_memory_that_grows_is_told_of() -> None:
    kept: list[bytes] = []

    def check(value: int) -> None:
        # So large that the system is asked for it: smaller ones may lie where earlier tests have left room.
        kept.append(b"x" * 40_000_000)

    with pytest.raises(GrowthError, match="memory grew by"):
        fuzz(Target(st.integers(), check), seconds=0, seed=1, growth_bytes=1_000_000, round_examples=2)
