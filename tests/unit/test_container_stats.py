from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.sandbox.stats import NOT_RUNNING, sample_usage, usage_from_stats

if TYPE_CHECKING:
    from collections.abc import Mapping

FIXTURES = Path(__file__).parent.parent / "fixtures" / "stats"


def load(name: str) -> dict[str, Any]:
    stats: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return stats


class StepClock:
    """Sleeps at once and remembers for how long."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> Any:
        raise NotImplementedError

    def monotonic(self) -> float:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_one_shot_answer_alone_knows_no_cpu_but_everything_else(version: str) -> None:
    usage = usage_from_stats(load(f"{version}_one_shot_first"))

    assert usage.cpu_percent is None
    assert "cpu_percent" not in usage.as_dict()
    assert usage.memory_mb
    assert usage.num_processes


def test_cgroup_v1_shows_what_docker_stats_showed_when_it_was_recorded() -> None:
    usage = usage_from_stats(load("v1_two_cycles"))

    assert usage.memory_mb == pytest.approx(1.625, abs=0.01)
    assert usage.cpu_percent == pytest.approx(50.1, abs=0.2)
    assert usage.num_processes == 2
    assert usage.memory_limit_mb == 64
    assert usage.peak_memory_mb == pytest.approx(26.04, abs=0.01)


def test_cgroup_v2_has_no_peak_and_subtracts_its_own_inactive_file() -> None:
    usage = usage_from_stats(load("v2_two_cycles"))

    assert usage.as_dict() == {
        "memory_mb": 32.0,
        "cpu_percent": pytest.approx(150.0),
        "num_processes": 3,
        "memory_limit_mb": 256.0,
    }


@pytest.mark.parametrize(("version", "percent"), [("v1", 50.8), ("v2", 75.0)])
def test_two_one_shot_samples_give_the_cpu_between_them(version: str, percent: float) -> None:
    usage = usage_from_stats(load(f"{version}_one_shot_second"), load(f"{version}_one_shot_first"))

    assert usage.cpu_percent == pytest.approx(percent, abs=0.1)


def test_a_container_that_has_ended_uses_nothing() -> None:
    exited = load("v1_exited")

    assert usage_from_stats(exited) == NOT_RUNNING
    assert usage_from_stats(exited, load("v1_one_shot_second")) == NOT_RUNNING
    assert usage_from_stats({}) == NOT_RUNNING


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_without_timestamps_the_machines_cpu_clock_is_the_window(version: str) -> None:
    stats = load(f"{version}_two_cycles")
    by_timestamps = usage_from_stats(stats).cpu_percent
    del stats["preread"]

    assert usage_from_stats(stats).cpu_percent == pytest.approx(by_timestamps, rel=0.02)


def test_engines_before_online_cpus_are_counted_by_their_per_cpu_list() -> None:
    stats = load("v1_two_cycles")
    del stats["preread"]
    del stats["cpu_stats"]["online_cpus"]

    assert usage_from_stats(stats).cpu_percent == pytest.approx(50.1, abs=0.2)


def test_a_machine_without_the_memory_controller_leaves_memory_unknown() -> None:
    stats = load("v2_two_cycles") | {"memory_stats": {}}

    usage = usage_from_stats(stats)

    assert usage.memory_mb is None
    assert set(usage.as_dict()) == {"cpu_percent", "num_processes"}


def test_more_inactive_file_than_usage_is_not_subtracted() -> None:
    # The kernel's two counters are read one after the other, so this happens.
    stats = load("v2_two_cycles")
    stats["memory_stats"]["stats"]["inactive_file"] = stats["memory_stats"]["usage"] + 1

    assert usage_from_stats(stats).memory_mb == 42.0


def test_the_same_sample_twice_knows_no_cpu() -> None:
    first = load("v1_one_shot_first")

    assert usage_from_stats(first, first).cpu_percent is None


def test_a_counter_that_ran_backwards_is_zero_and_never_negative() -> None:
    # A container that was restarted between the samples counts from zero again.
    stats = load("v2_one_shot_second")
    stats["cpu_stats"]["cpu_usage"]["total_usage"] = 5

    assert usage_from_stats(stats, load("v2_one_shot_first")).cpu_percent == 0.0


async def test_sampling_asks_twice_with_a_pause_between() -> None:
    answers = [load("v2_one_shot_first"), load("v2_one_shot_second")]
    clock = StepClock()

    async def fetch() -> Mapping[str, Any]:
        return answers.pop(0)

    usage = await sample_usage(fetch, clock=clock)

    assert usage.cpu_percent == pytest.approx(75.0)
    assert clock.slept == [0.1]
    assert answers == []


async def test_sampling_an_ended_container_asks_once() -> None:
    clock = StepClock()

    async def fetch() -> Mapping[str, Any]:
        return load("v1_exited")

    assert await sample_usage(fetch, clock=clock) == NOT_RUNNING
    assert clock.slept == []


async def test_a_container_that_ends_between_the_samples_uses_nothing() -> None:
    answers = [load("v1_one_shot_second"), load("v1_exited")]

    async def fetch() -> Mapping[str, Any]:
        return answers.pop(0)

    assert await sample_usage(fetch, clock=StepClock()) == NOT_RUNNING
