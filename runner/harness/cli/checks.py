"""What `harness doctor` checks. Each check says what it found, or raises with what is wrong and what to do."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from harness.cli.findings import CheckResult, CheckStatus, NotNeededError, ProblemError, WorryError
from harness.errors import EngineUnavailableError, HarnessError

if TYPE_CHECKING:
    from harness.ports import OwnedContainer, SandboxLimits, Store
    from harness.sandbox.docker import DockerSandbox
    from harness.sandbox.hostconfig import Isolation
    from harness.sandbox.inspection import ContainerLimits, EngineFacts
    from harness.settings import Settings

#: Bound on one check, in seconds; the run of a container is the longest.
CHECK_TIMEOUT_SECONDS = 60.0
#: Stands where a store's id would in the labels of the doctor's own containers, so that no runner's sweep takes them
#: for orphans of its store.
DOCTOR_STORE_ID = "doctor"

_SMOKE_CODE = """\
import handoff
handoff.save({"seen": context["sent"]})
print("hello")
"""


#: A name, the checks that must have gone well before, and the check.
_Check = tuple[str, tuple[str, ...], Callable[[], Awaitable[str]]]

_NEEDS = {"settings": "valid settings", "store": "the store", "engine": "the engine", "image": "the image"}


class Doctor:
    """One round of checks, with what earlier ones have opened for later ones. Good for one round."""

    def __init__(self, *, with_run: bool = True) -> None:
        self._with_run = with_run
        self._opened = AsyncExitStack()
        self._failed: set[str] = set()
        self._settings: Settings
        self._store: Store
        self._sandbox: DockerSandbox
        self._facts: EngineFacts
        self._isolation: Isolation

    async def results(self) -> AsyncIterator[CheckResult]:
        """Run the checks in order and yield each finding as it is there."""
        checks: Sequence[_Check] = (
            ("settings", (), self._check_settings),
            ("data directory", ("settings",), self._check_data_dir),
            ("store", ("settings",), self._check_store),
            ("engine", ("settings",), self._check_engine),
            ("versions", ("engine",), self._check_versions),
            ("runtime", ("engine",), self._check_runtime),
            ("limits", ("engine",), self._check_limits),
            ("cgroups", ("engine",), self._check_cgroups),
            ("security", ("engine",), self._check_security),
            ("image", ("engine",), self._check_image),
            ("sandbox run", ("engine", "image"), self._check_run),
            ("leftovers", ("engine", "store"), self._check_leftovers),
        )
        async with self._opened:
            for name, needed, check in checks:
                yield await self._run_one(name, needed, check)

    async def _run_one(
        self, name: str, needed: Sequence[str], check: Callable[[], Awaitable[str]]
    ) -> CheckResult:
        missing = next((other for other in needed if other in self._failed), None)
        if missing is not None:
            self._failed.add(name)
            return CheckResult(name, CheckStatus.SKIPPED, f"needs {_NEEDS[missing]}")
        began = time.monotonic()

        def finding(status: CheckStatus, detail: str, remedy: str | None = None) -> CheckResult:
            if status is CheckStatus.PROBLEM:
                self._failed.add(name)
            return CheckResult(name, status, detail, remedy, round(time.monotonic() - began, 4))

        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                return finding(CheckStatus.OK, await check())
        except NotNeededError as reason:
            return finding(CheckStatus.SKIPPED, str(reason))
        except WorryError as worry:
            return finding(CheckStatus.WARNING, worry.detail, worry.remedy)
        except ProblemError as problem:
            return finding(CheckStatus.PROBLEM, problem.detail, problem.remedy)
        except HarnessError as error:
            return finding(CheckStatus.PROBLEM, error.message, _REMEDIES.get(name))
        except TimeoutError:
            return finding(
                CheckStatus.PROBLEM, f"no end within {CHECK_TIMEOUT_SECONDS:g} s", _REMEDIES.get(name)
            )
        except Exception as error:  # noqa: BLE001 - the other checks may say what it comes from
            return finding(CheckStatus.PROBLEM, f"unexpected: {error!r}", _REMEDIES.get(name))

    async def _check_settings(self) -> str:
        from harness.settings import get_settings

        self._settings = get_settings()
        count = len(self._settings.model_fields_set)
        return f"valid, {count} set by the environment" if count else "valid, all defaults"

    async def _check_data_dir(self) -> str:
        folder = self._settings.data_dir
        if self._settings.mongodb_uri is not None:
            raise NotNeededError("not used with MongoDB")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"x")
                probe.flush()
            space = os.statvfs(folder)
        except OSError as error:
            raise ProblemError(
                f"{folder} can't be written: {error.strerror}",
                "make it writable for this user, or set HARNESS_DATA_DIR to a folder that is",
            ) from error
        return f"{folder} is writable, {space.f_bavail * space.f_frsize / 1e9:.1f} GB free"

    async def _check_store(self) -> str:
        from harness.clock import SystemClock
        from harness.store.documents import SCHEMA_VERSION
        from harness.wiring import make_store

        store = make_store(self._settings, SystemClock())
        self._opened.push_async_callback(store.close)
        await store.open()
        self._store = store
        agents = (await store.list_agents(limit=1)).total_count
        tasks = (await store.list_tasks(limit=1)).total_count
        kind = f"SQLite in {self._settings.data_dir}"
        if self._settings.mongodb_uri is not None:
            kind = f"MongoDB, database {self._settings.mongodb_database}"
        return f"{kind}; schema {SCHEMA_VERSION}; agents: {agents}, tasks: {tasks}"

    async def _check_engine(self) -> str:
        from harness.clock import SystemClock
        from harness.sandbox.inspection import engine_facts, ping
        from harness.wiring import make_sandbox

        sandbox = make_sandbox(self._settings, SystemClock())
        self._opened.push_async_callback(sandbox.close)
        try:
            await ping(sandbox.engine)
        except EngineUnavailableError as error:
            # These messages end with what to do.
            detail, _, remedy = error.message.rpartition("; ")
            raise ProblemError(detail or error.message, remedy) from error
        self._facts = await engine_facts(sandbox.engine)
        self._sandbox = sandbox
        self._isolation = sandbox.engine.isolation
        facts = self._facts
        return f"Docker {facts.version}, API {facts.api_version}, {facts.storage_driver}, at {sandbox.engine.address.url}"

    async def _check_versions(self) -> str:
        from harness.cli.isolation import describe_versions

        return describe_versions(self._facts, self._isolation)

    async def _check_runtime(self) -> str:
        from harness.cli.isolation import describe_runtime

        return describe_runtime(self._facts, self._isolation)

    async def _check_limits(self) -> str:
        facts = self._facts
        supported = {
            "memory": facts.memory_limit,
            "swap": facts.swap_limit,
            "processes": facts.pids_limit,
            "CPU": facts.cpu_quota,
        }
        missing = [name for name, there in supported.items() if not there]
        warnings = "; ".join(facts.warnings)
        if missing:
            raise ProblemError(
                f"the engine can't limit {', '.join(missing)}" + (f" ({warnings})" if warnings else ""),
                "enable the cgroup controllers in the kernel (boot with cgroup_enable=memory swapaccount=1); a rootless "
                "engine needs cgroup v2 with delegation",
            )
        listed = ", ".join(supported)
        return f"the engine can limit {listed}" + (f"; it warns: {warnings}" if warnings else "")

    async def _check_cgroups(self) -> str:
        facts = self._facts
        if facts.cgroup_driver == "none":
            raise ProblemError(
                "the engine has no cgroups, so no limit is enforced",
                "a rootless engine needs cgroup v2 and systemd; see Docker's manual on rootless mode",
            )
        return f"version {facts.cgroup_version}, driver {facts.cgroup_driver}"

    async def _check_security(self) -> str:
        from harness.cli.isolation import describe_security

        return describe_security(self._facts, self._isolation)

    async def _check_image(self) -> str:
        from harness.sandbox.inspection import has_image

        own = self._settings.sandbox_image
        if own is not None:
            if not await has_image(self._sandbox.engine, own):
                raise ProblemError(
                    f"the engine does not have HARNESS_SANDBOX_IMAGE={own}", f"docker pull {own}"
                )
            return f"{own}, set by HARNESS_SANDBOX_IMAGE"
        image = await self._sandbox.images.current()
        if image is None:
            raise ProblemError("the sandbox image is not built", "harness images build")
        return f"{image.tag} on {image.base}, {image.size_bytes / 1e6:.0f} MB"

    async def _check_run(self) -> str:
        if not self._with_run:
            raise NotNeededError("left out by --no-run")
        from harness.models import Reason
        from harness.ports import SandboxJob, SandboxLabels, SandboxSpec
        from harness.sandbox.inspection import container_limits

        limits = _smoke_limits()
        # The process id and a random number: two doctors at once must not share a container's name.
        labels = SandboxLabels(DOCTOR_STORE_ID, os.getpid(), secrets.randbelow(1 << 31))
        output = bytearray()
        began = time.monotonic()
        async with self._sandbox.open(SandboxSpec(limits=limits, labels=labels)) as session:
            told = await container_limits(self._sandbox.engine, session.container_id)
            _compare(limits, told, self._isolation)
            job = SandboxJob(context={"sent": 7}, task={}, files={"main.py": _SMOKE_CODE})
            result = await session.run(
                job, sink=lambda _, data: output.extend(data), before_stop=_ignore_stop
            )
            start_seconds = session.start_seconds
        await self._sandbox.settle()
        if (
            result.reason is not Reason.COMPLETED
            or bytes(output) != b"hello\n"
            or result.state != {"seen": 7}
        ):
            raise ProblemError(
                f"a trivial agent did not come through: {result.reason}, {result.error}, output {bytes(output[:200])!r}",
                "build the image anew: harness images build --force",
            )
        whole = time.monotonic() - began
        return f"a container with all limits ran an agent and is gone; {start_seconds * 1000:.0f} ms to start, {whole * 1000:.0f} ms in all"

    async def _check_leftovers(self) -> str:
        owned = await self._sandbox.owned_containers(self._store.store_id)
        idle = [container for container in owned if not await _is_in_use(self._store, container)]
        doctors = await self._sandbox.owned_containers(DOCTOR_STORE_ID)
        idle += [container for container in doctors if container.state in ("exited", "dead")]
        if idle:
            ids = " ".join(container.container_id[:12] for container in idle)
            raise ProblemError(
                f"{len(idle)} of our containers belong to no running task",
                f"docker rm -f {ids}",
            )
        return f"none; {len(owned)} containers in use" if owned else "none"


_REMEDIES = {
    "settings": "correct the variables named, or unset them",
    "store": "see that it is there and that this user may use it; HARNESS_DATA_DIR or HARNESS_MONGODB_URI says where it is",
    "engine": "start it (systemctl start docker), or set DOCKER_HOST to where it is",
    "image": "harness images build",
    "sandbox run": "build the image anew (harness images build --force); else read the engine's own log",
}


def _smoke_limits() -> SandboxLimits:
    from harness.config import DEFAULT_MAX_STATE_BYTES, MIB
    from harness.ports import SandboxLimits

    return SandboxLimits(
        memory_bytes=64 * MIB,
        cpus=0.5,
        max_processes=16,
        tmp_bytes=4 * MIB,
        timeout_seconds=20,
        grace_seconds=1,
        output_bytes=MIB,
        state_bytes=DEFAULT_MAX_STATE_BYTES,
    )


def _compare(asked: SandboxLimits, told: ContainerLimits, isolation: Isolation) -> None:
    """Raise unless a container was told every limit and every lock-down."""
    from harness.sandbox.seccomp import SECURITY_OPTION

    wrong = {
        "memory": told.memory_bytes != asked.memory_bytes,
        "swap": told.memory_swap_bytes != asked.memory_bytes,
        "CPU": told.nano_cpus != round(asked.cpus * 1e9),
        "processes": told.max_processes != asked.max_processes,
        "network": told.network != "none",
        "user": told.user in ("", "0", "root"),
        "read-only root": not told.read_only,
        "capabilities": "ALL" not in told.dropped_capabilities,
        "no-new-privileges": not any(
            option.startswith("no-new-privileges") for option in told.security_options
        ),
        "filter of system calls": SECURITY_OPTION not in told.security_options,
        "runtime": isolation.runtime not in (None, told.runtime),
    }
    if any(wrong.values()):
        names = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise ProblemError(
            f"the engine did not take over: {names}",
            "use a Docker Engine that supports them; see the check of limits",
        )


async def _is_in_use(store: Store, container: OwnedContainer) -> bool:
    from harness.errors import TaskNotFoundError
    from harness.models import TaskStatus
    from harness.ports import WarmLabels

    labels = container.labels
    if isinstance(labels, WarmLabels):
        return container.state == "running" and await store.now() < labels.until
    try:
        task = await store.get_task(labels.task_id)
    except TaskNotFoundError:
        return False
    holds = task.status is TaskStatus.RUNNING and task.fence == labels.fence
    return holds and task.due_at is not None and task.due_at > await store.now()


async def _ignore_stop(_reason: object, _message: str) -> None:
    """Nothing is recorded about the doctor's own run."""
