from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from harness.cli.checks import Doctor, ProblemError, _compare, _is_in_use, _smoke_limits
from harness.models import AgentDraft, Claim, NewTask
from harness.ports import OwnedContainer, SandboxLabels
from harness.sandbox.inspection import ContainerLimits, EngineFacts
from harness.sandbox.seccomp import SECURITY_OPTION
from harness.testing import FakeClock, MemoryStore

GOOD = EngineFacts(
    version="29.0.0",
    api_version="1.52",
    cgroup_version="2",
    cgroup_driver="systemd",
    storage_driver="overlay2",
    memory_limit=True,
    swap_limit=True,
    pids_limit=True,
    cpu_quota=True,
    security_options=("name=seccomp,profile=builtin", "name=cgroupns"),
    warnings=(),
    rootless=False,
)


def doctor_with(**changes: Any) -> Doctor:
    doctor = Doctor()
    doctor._facts = replace(GOOD, **changes)
    return doctor


async def test_a_good_engine_passes() -> None:
    doctor = doctor_with()
    assert await doctor._check_limits() == "the engine can limit memory, swap, processes, CPU"
    assert await doctor._check_cgroups() == "version 2, driver systemd"
    assert (await doctor._check_security()).startswith("seccomp, cgroupns; no user namespaces")


async def test_a_missing_controller_is_a_problem_that_names_it_and_the_engines_warning() -> None:
    doctor = doctor_with(swap_limit=False, cpu_quota=False, warnings=("WARNING: No swap limit support",))
    with pytest.raises(ProblemError, match=r"can't limit swap, CPU \(WARNING: No swap limit support\)"):
        await doctor._check_limits()


async def test_warnings_are_passed_on() -> None:
    assert "it warns: careful" in await doctor_with(warnings=("careful",))._check_limits()


async def test_an_engine_without_cgroups_is_a_problem() -> None:
    with pytest.raises(ProblemError, match="no limit is enforced"):
        await doctor_with(cgroup_driver="none")._check_cgroups()


@pytest.mark.parametrize("options", [(), ("name=apparmor",)])
async def test_an_engine_that_filters_no_system_calls_is_a_problem(options: tuple[str, ...]) -> None:
    with pytest.raises(ProblemError):
        await doctor_with(security_options=options)._check_security()


async def test_user_namespaces_and_rootless_are_noted() -> None:
    seccomp = "name=seccomp,profile=default"
    assert "user namespaces" in await doctor_with(security_options=(seccomp, "name=userns"))._check_security()
    rootless = doctor_with(security_options=(seccomp, "name=rootless"), rootless=True)
    assert (await rootless._check_security()).endswith("; rootless")


async def test_an_unexpected_failure_of_a_check_is_a_finding_too() -> None:
    async def check() -> str:
        raise KeyError("Id")

    result = await Doctor()._run_one("engine", (), check)
    assert (result.status, result.detail) == ("problem", "unexpected: KeyError('Id')")


TOLD = ContainerLimits(
    memory_bytes=_smoke_limits().memory_bytes,
    memory_swap_bytes=_smoke_limits().memory_bytes,
    nano_cpus=500_000_000,
    max_processes=16,
    network="none",
    user="10001:10001",
    read_only=True,
    dropped_capabilities=("ALL",),
    security_options=("no-new-privileges:true", SECURITY_OPTION),
)


def test_a_container_told_everything_passes() -> None:
    _compare(_smoke_limits(), TOLD)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"memory_bytes": 0}, "memory"),
        ({"memory_swap_bytes": -1}, "swap"),
        ({"nano_cpus": 0}, "CPU"),
        ({"max_processes": None}, "processes"),
        ({"network": "bridge"}, "network"),
        ({"user": ""}, "user"),
        ({"read_only": False}, "read-only root"),
        ({"dropped_capabilities": ()}, "capabilities"),
        ({"security_options": ("no-new-privileges:true",)}, "filter of system calls"),
        ({"security_options": (SECURITY_OPTION,)}, "no-new-privileges"),
    ],
)
def test_every_limit_a_container_was_not_told_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ProblemError, match=f"did not take over: {named}$"):
        _compare(_smoke_limits(), replace(TOLD, **change))


async def test_a_container_is_in_use_only_under_its_own_live_lease() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    await store.open()
    agent = await store.create_agent(AgentDraft(name="a", code="pass"))
    task = await store.create_task(NewTask(agent_id=agent.id), claim=Claim(owner="me", lease_seconds=30))

    def container(task_id: int, fence: int) -> OwnedContainer:
        return OwnedContainer("id", SandboxLabels(store.store_id, task_id, fence), "running", clock.now())

    assert await _is_in_use(store, container(task.id, task.fence))
    assert not await _is_in_use(store, container(task.id, task.fence + 1))
    assert not await _is_in_use(store, container(99, 1))
    clock.set_wall_clock(clock.now() + timedelta(seconds=31))
    assert not await _is_in_use(store, container(task.id, task.fence))
    await store.close()
