from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from harness.cli.checks import Doctor, _compare, _is_in_use, _smoke_limits
from harness.cli.findings import ProblemError
from harness.models import AgentDraft, Claim, NewTask
from harness.ports import OwnedContainer, SandboxLabels
from harness.sandbox.hostconfig import ENGINES_OWN, Isolation
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
    runtimes=("io.containerd.runc.v2", "runc", "runsc"),
)


def doctor_with(*, isolation: Isolation = ENGINES_OWN, **changes: Any) -> Doctor:
    doctor = Doctor()
    doctor._isolation = isolation
    doctor._facts = replace(GOOD, **changes)
    return doctor


async def test_a_good_engine_passes() -> None:
    doctor = doctor_with()
    assert await doctor._check_limits() == "the engine can limit memory, swap, processes, CPU"
    assert await doctor._check_cgroups() == "version 2, driver systemd"
    security = await doctor._check_security()
    assert security.startswith("system calls are filtered; no AppArmor or SELinux; no user namespaces")
    assert await doctor._check_runtime() == "runc, the engine's default"


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


@pytest.mark.parametrize(("option", "named"), [("apparmor", "AppArmor is on"), ("selinux", "SELinux is on")])
async def test_the_kernels_access_control_is_noted(option: str, named: str) -> None:
    options = ("name=seccomp,profile=builtin", f"name={option}")
    assert named in await doctor_with(security_options=options)._check_security()


async def test_a_profile_that_nobody_enforces_is_a_problem() -> None:
    isolation = Isolation(apparmor_profile="harness-agent")
    with pytest.raises(
        ProblemError, match="HARNESS_APPARMOR_PROFILE=harness-agent is set, and the engine has no"
    ):
        await doctor_with(isolation=isolation)._check_security()
    options = ("name=apparmor", "name=seccomp,profile=builtin")
    doctor = doctor_with(isolation=isolation, security_options=options)
    assert "AppArmor is on, with the profile harness-agent" in await doctor._check_security()


async def test_a_runtime_that_the_engine_does_not_have_is_a_problem_that_names_those_it_has() -> None:
    doctor = doctor_with(isolation=Isolation(runtime="kata"))
    with pytest.raises(
        ProblemError, match=r"RUNTIME=kata asks for; it has io\.containerd\.runc\.v2, runc, runsc"
    ):
        await doctor._check_runtime()
    there = doctor_with(isolation=Isolation(runtime="runsc"))
    assert await there._check_runtime() == "runsc, set by HARNESS_SANDBOX_RUNTIME"


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
    runtime="runc",
)


def test_a_container_told_everything_passes() -> None:
    _compare(_smoke_limits(), TOLD, ENGINES_OWN)
    _compare(_smoke_limits(), TOLD, Isolation(runtime="runc"))


def test_a_container_of_another_runtime_than_asked_for_does_not_pass() -> None:
    with pytest.raises(ProblemError, match=r"did not take over: runtime$"):
        _compare(_smoke_limits(), TOLD, Isolation(runtime="runsc"))


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
        _compare(_smoke_limits(), replace(TOLD, **change), ENGINES_OWN)


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
