from __future__ import annotations

import os
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from harness.errors import InvalidInputError, NotFoundError, ProcessNotFoundError
from harness.models import ResourceLimits
from harness.resources import ResourceManager
from harness.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Started and ready once the line is read; ends when its stdin closes, so that no test leaves one behind.
IDLE = "import sys; print('ready', flush=True); sys.stdin.read()"
BURN = "import sys, time\nwhile time.process_time() < 0.3: pass\n" + IDLE
FAMILY = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', \"import sys; print('ready', flush=True); sys.stdin.read()\"],\n"
    "    stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n" + IDLE + "\nchild.communicate()"
)

Process = subprocess.Popen[str]


@pytest.fixture
def start() -> Iterator[Any]:
    processes: list[Process] = []

    def start(code: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        end(process)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def manager(clock: FakeClock) -> ResourceManager:
    return ResourceManager(clock=clock)


def end(process: Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_a_process_usage_has_the_documented_shape(start: Any) -> None:
    usage = ResourceManager().get_process_usage(process_id=start(IDLE).pid)

    assert set(usage) == {"memory_mb", "cpu_percent", "num_threads", "num_children"}
    assert 1 < usage["memory_mb"] < 500
    assert usage["num_threads"] == 1
    assert usage["num_children"] == 0


def test_the_first_cpu_reading_is_the_average_since_the_start(manager: ResourceManager, start: Any) -> None:
    assert manager.get_process_usage(start(BURN).pid)["cpu_percent"] > 10


async def test_later_cpu_readings_measure_from_call_to_call(
    manager: ResourceManager, clock: FakeClock, start: Any
) -> None:
    pid = start(BURN).pid
    manager.get_process_usage(pid)

    await clock.advance(1000)

    assert manager.get_process_usage(pid)["cpu_percent"] < 0.1


async def test_readings_closer_than_the_kernel_counts_give_the_same_cpu(
    manager: ResourceManager, clock: FakeClock, start: Any
) -> None:
    pid = start(BURN).pid
    first = manager.get_process_usage(pid)["cpu_percent"]

    await clock.advance(0.05)

    assert manager.get_process_usage(pid)["cpu_percent"] == first


def test_all_descendants_are_counted(manager: ResourceManager, start: Any) -> None:
    assert manager.get_process_usage(start(FAMILY).pid)["num_children"] == 1


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1, 2**70])
def test_an_unknown_process_is_named(manager: ResourceManager, pid: int) -> None:
    with pytest.raises(ProcessNotFoundError, match=f"process {pid} does not exist") as caught:
        manager.get_process_usage(pid)

    assert isinstance(caught.value, NotFoundError)
    assert caught.value.code == "process_not_found"


def test_a_process_that_ended_between_two_calls_is_not_found(manager: ResourceManager, start: Any) -> None:
    process = start(IDLE)
    manager.get_process_usage(process.pid)
    end(process)

    with pytest.raises(ProcessNotFoundError, match="has ended"):
        manager.get_process_usage(process.pid)


def test_a_zombie_has_ended(manager: ResourceManager, start: Any) -> None:
    process = start(IDLE)
    manager.get_process_usage(process.pid)
    process.stdin.close()
    # Waits for the end without reaping.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(ProcessNotFoundError, match="waits for its parent to reap it"):
        manager.get_process_usage(process.pid)
    assert manager.kill_process(process.pid) is False


def test_a_stranger_with_a_reused_id_is_neither_measured_nor_killed(
    manager: ResourceManager, start: Any
) -> None:
    process = start(IDLE)
    manager.get_process_usage(process.pid)
    # The kernel hands an id out again only after all others. So the process plays its own successor: what is
    # remembered is another start time.
    remembered: Any = manager._processes[process.pid].process
    remembered._ident = (process.pid, 12345.0)

    assert manager.kill_process(process.pid, force=True) is False
    with pytest.raises(ProcessNotFoundError, match="has ended since it was last measured"):
        manager.get_process_usage(process.pid)
    assert process.poll() is None
    assert manager.get_process_usage(process.pid)["num_threads"] == 1
    assert manager.kill_process(process.pid) is True


def test_a_process_of_somebody_else_gives_a_remedy(
    manager: ResourceManager, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start(IDLE).pid

    def refuse(*_: object) -> None:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil.Process, "terminate", refuse)
    monkeypatch.setattr(psutil.Process, "num_threads", refuse)

    with pytest.raises(
        InvalidInputError, match=f"process {pid} .*may not signal it; run as its owner or as root"
    ):
        manager.kill_process(pid)
    with pytest.raises(InvalidInputError, match="may not look at it"):
        manager.get_process_usage(pid)


def test_processes_that_have_ended_are_not_remembered_for_ever(
    manager: ResourceManager, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.resources._REMEMBERED_PROCESSES", 2)
    for _ in range(5):
        process = start(IDLE)
        manager.get_process_usage(process.pid)
        end(process)

    assert len(manager._processes) <= 2


@pytest.mark.parametrize(("force", "signal"), [(False, 15), (True, 9)])
def test_a_process_is_killed(manager: ResourceManager, start: Any, force: bool, signal: int) -> None:
    process = start(IDLE)

    assert manager.kill_process(process_id=process.pid, force=force) is True
    assert process.wait() == -signal
    assert manager.kill_process(process.pid) is False


@pytest.mark.parametrize("pid", [1, 0, -1, -4000, os.getpid()], ids=["init", "0", "-1", "-4000", "oneself"])
def test_init_groups_and_oneself_are_never_killed(manager: ResourceManager, pid: int) -> None:
    with pytest.raises(InvalidInputError, match=f"process {pid} is not killed"):
        manager.kill_process(pid, force=True)


@pytest.mark.parametrize(
    ("usage", "exceeds"),
    [
        ({"memory_mb": 100, "cpu_percent": 50, "num_threads": 99, "num_children": 1}, False),
        ({"memory_mb": 128, "cpu_percent": 80.0, "num_children": 2}, False),
        ({"memory_mb": 128.1, "cpu_percent": 0, "num_children": 0}, True),
        ({"memory_mb": 1, "cpu_percent": 80.1, "num_children": 0}, True),
        ({"memory_mb": 1, "cpu_percent": 0, "num_children": 3}, True),
        ({"memory_mb": 1, "num_processes": 3, "num_children": 99}, False),
        ({"memory_mb": 1, "num_processes": 4, "memory_limit_mb": 64, "peak_memory_mb": 999}, True),
        ({"memory_mb": 129}, True),
        ({"cpu_percent": None, "memory_mb": 1}, False),
    ],
)
def test_a_usage_above_any_limit_exceeds(usage: dict[str, Any], exceeds: bool) -> None:
    limits = ResourceLimits(max_memory_mb=128, max_cpu_percent=80.0, max_processes=3)

    assert ResourceManager().exceeds_limits(usage, limits) is exceeds


@pytest.mark.parametrize(
    ("usage", "complaint"),
    [
        ({}, "none of the keys"),
        ({"memory": 1}, "only .'memory'."),
        ({"memory_mb": "12"}, "'12' for memory_mb"),
        ({"cpu_percent": float("nan")}, "nan for cpu_percent"),
        ({"num_children": True}, "True for num_children"),
        ([1], "usage is list"),
    ],
)
def test_a_usage_of_unknown_shape_is_refused(usage: Any, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        ResourceManager().exceeds_limits(usage, ResourceLimits())


async def test_the_machine_is_measured_from_the_first_call_on(
    manager: ResourceManager, clock: FakeClock
) -> None:
    first = manager.get_system_resources()

    assert set(first) == {
        "total_memory_mb",
        "available_memory_mb",
        "memory_percent",
        "cpu_count",
        "cpu_percent",
    }
    assert 0 < first["available_memory_mb"] < first["total_memory_mb"]
    assert 0 < first["memory_percent"] <= 100
    assert first["cpu_count"] >= 1
    assert 0 < first["cpu_percent"] <= 100

    await clock.advance(1_000_000)

    assert manager.get_system_resources()["cpu_percent"] < first["cpu_percent"]


class OneContainer:
    async def container_usage(self, container_id: str) -> dict[str, float]:
        assert container_id == "abc"
        return {"memory_mb": 12.5, "cpu_percent": 3.0, "num_processes": 2}


async def test_a_container_is_measured_by_the_sandbox_given() -> None:
    manager = ResourceManager(sandbox=OneContainer())

    usage = await manager.get_container_usage("abc")

    assert usage == {"memory_mb": 12.5, "cpu_percent": 3.0, "num_processes": 2}
    assert manager.exceeds_limits(usage, ResourceLimits(max_processes=1))


async def test_without_a_sandbox_the_shared_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def shared_runtime() -> SimpleNamespace:
        return SimpleNamespace(sandbox=OneContainer())

    wiring = ModuleType("harness.wiring")
    monkeypatch.setattr(wiring, "shared_runtime", shared_runtime, raising=False)
    monkeypatch.setitem(sys.modules, "harness.wiring", wiring)

    assert (await ResourceManager().get_container_usage("abc"))["memory_mb"] == 12.5


def test_the_age_of_a_young_process_is_exact(start: Any) -> None:
    from harness.resources import _age_seconds

    before = time.monotonic()
    process = start(IDLE)
    age = _age_seconds(psutil.Process(process.pid))

    assert -0.02 <= age <= time.monotonic() - before + 0.02
