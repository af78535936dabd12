"""Feeding a target for a time, with an eye on how long each example takes and on memory."""

from __future__ import annotations

import gc
import re
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase
from tests.fuzz.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

#: An example that takes longer hangs. All take milliseconds; on a busy machine they may have to wait.
EXAMPLE_SECONDS = 10.0
#: Memory may grow by this much after the warm-up: caches fill, and the allocator's pieces lie about. A leak of a hundred
#: bytes an example grows past it within minutes.
GROWTH_BYTES = 32 * 1024 * 1024
#: Part of the time after which all caches are taken to be full.
WARM_UP_SHARE = 0.25
#: Examples between two looks at the clock.
ROUND_EXAMPLES = 500


class HangError(Exception):
    """An example took too long."""


class GrowthError(Exception):
    """Memory grew."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went; what goes wrong is raised."""

    examples: int
    seconds: float
    slowest_seconds: float
    growth_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.examples:,} examples in {self.seconds:.0f} s, the slowest took {self.slowest_seconds * 1000:.1f} ms, "
            f"memory grew by {self.growth_bytes / 2**20:.1f} MiB after the warm-up"
        )


def fuzz(
    target: Target,
    *,
    seconds: float,
    seed: int,
    example_seconds: float = EXAMPLE_SECONDS,
    growth_bytes: int = GROWTH_BYTES,
    round_examples: int = ROUND_EXAMPLES,
) -> Outcome:
    """Feed a target for a time; on the main thread alone, as it uses SIGALRM.

    Raises:
        HangError: An example took longer than `example_seconds`.
        GrowthError: Memory grew by more than `growth_bytes`.
        Exception: What the target raised, with the example in a note.
    """
    began, examples, rounds, slowest = time.monotonic(), 0, 0, 0.0

    def check(value: Any) -> None:
        nonlocal examples, slowest
        examples += 1
        at = time.perf_counter()
        with _bounded(example_seconds):
            target.check(value)
        slowest = max(slowest, time.perf_counter() - at)

    warm_bytes: int | None = None
    growth = 0
    # One round at least before the end of the warm-up, and one after it.
    while (elapsed := time.monotonic() - began) < seconds or rounds < 2:
        _feed(target, check, seed=seed + rounds, examples=round_examples)
        rounds += 1
        gc.collect()
        if warm_bytes is None or elapsed < seconds * WARM_UP_SHARE:
            warm_bytes = _resident_bytes()
        growth = _resident_bytes() - warm_bytes
    if growth > growth_bytes:
        raise GrowthError(f"memory grew by {growth:,} bytes over {examples:,} examples")
    return Outcome(examples, time.monotonic() - began, slowest, growth)


def _feed(target: Target, check: Callable[[Any], None], *, seed: int, examples: int) -> None:
    def feed(value: Any) -> None:
        check(value)

    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(value=target.given)(feed)))()


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise HangError(f"an example took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    # There may be one of a test runner.
    left = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *left)


def _resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
