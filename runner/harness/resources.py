"""`ResourceManager`: what processes, containers and the machine use, and whether that is too much.

The limits of a sandbox are enforced by the kernel, not from here. This is for looking, and for processes outside any
sandbox. Megabytes are MiB; per cents of CPU are of one core, so 200.0 is two full cores.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from harness.clock import SystemClock
from harness.config import MIB
from harness.errors import InvalidInputError, ProcessNotFoundError

if TYPE_CHECKING:
    from harness.models import ResourceLimits
    from harness.ports import Clock

#: The kernel counts a process's CPU time in steps of 10 ms; a window of less than this gives noise.
MIN_WINDOW_SECONDS = 0.1

#: Processes remembered before those that have ended are looked for.
_REMEMBERED_PROCESSES = 128


class ContainerUsageSource(Protocol):
    """The part of a sandbox that `ResourceManager` asks; `harness.sandbox` has it."""

    async def container_usage(self, container_id: str) -> dict[str, float]:
        """Measure a container; see `ResourceManager.get_container_usage`."""


class ResourceManager:
    """Measures processes, containers and the machine.

    Keeps the previous reading of each process, so that the CPU is measured from call to call; use one manager for all.
    Not for use by several threads at once.
    """

    def __init__(self, *, sandbox: ContainerUsageSource | None = None, clock: Clock | None = None) -> None:
        """Take what it works with; does no I/O.

        Args:
            sandbox: Who measures containers. None: the sandbox shared by this process, opened when first asked.
            clock: Measures the time between two readings.
        """
        self._sandbox = sandbox
        self._clock = clock or SystemClock()
        self._processes: dict[int, _Watched] = {}
        self._machine: _Reading | None = None

    def get_process_usage(self, process_id: int) -> dict[str, float]:
        """Measure one process.

        Args:
            process_id: A process of this machine that the user may look at.

        Returns:
            ``memory_mb``: its resident memory, without its children's. ``cpu_percent``: since the previous call for
            the same process; on the first call, its average since it was started. Calls less than 0.1 s apart give the
            same number. ``num_threads``. ``num_children``: all descendants.

        Raises:
            ProcessNotFoundError: No such process; or it has ended, even if it was not reaped yet; or it has ended since
                the previous call and its id belongs to a stranger, whom the next call would measure.
            InvalidInputError: It belongs to somebody else, and the system does not let this user look.
        """
        watched = self._watch(process_id)
        process = watched.process
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                self._forget(process_id)
                raise _not_found(process_id, "has ended and waits for its parent to reap it")
            with process.oneshot():
                times = process.cpu_times()
                used = times.user + times.system
                watched.reading = self._read(used, watched.reading, age_seconds=_age_seconds(process))
                usage = {
                    "memory_mb": process.memory_info().rss / MIB,
                    "cpu_percent": watched.reading.percent,
                    "num_threads": process.num_threads(),
                }
            return usage | {"num_children": len(process.children(recursive=True))}
        except psutil.NoSuchProcess:
            self._forget(process_id)
            raise _not_found(process_id, "has ended") from None
        except psutil.AccessDenied:
            raise _denied(process_id, "look at") from None

    async def get_container_usage(self, container_id: str) -> dict[str, float]:
        """Measure one container through the Docker API; takes about a second on older engines.

        Returns:
            ``memory_mb``: without page cache that can be dropped, as ``docker stats`` shows it. ``cpu_percent``: over
            the last moment. ``num_processes``: processes and threads. Where known, ``memory_limit_mb`` and
            ``peak_memory_mb``. All zero for a container that has ended; a key is missing where the engine is silent.

        Raises:
            SandboxError: The engine does not answer, or knows no such container.
        """
        sandbox = self._sandbox
        if sandbox is None:
            # Only here, so that importing the manager pulls in no Docker SDK.
            from harness.wiring import shared_runtime

            sandbox = (await shared_runtime()).sandbox
        return await sandbox.container_usage(container_id)

    def exceeds_limits(self, usage: Mapping[str, float], limits: ResourceLimits) -> bool:
        """Tell whether a usage is above any of the limits; being at a limit is within it.

        Args:
            usage: What `get_process_usage` or `get_container_usage` returned. ``num_processes`` or, for a process,
                ``num_children`` and itself are held against `max_processes`. A key that is missing was not measured
                and exceeds nothing; other keys are ignored.
            limits: The thresholds.

        Raises:
            InvalidInputError: `usage` has none of the keys, or a value that is no number.
        """
        if not isinstance(usage, Mapping):
            raise InvalidInputError(f"usage is {type(usage).__name__}; give what get_process_usage returned")
        measured = (
            (_number(usage, "memory_mb"), limits.max_memory_mb),
            (_number(usage, "cpu_percent"), limits.max_cpu_percent),
            (_process_count(usage), limits.max_processes),
        )
        if all(value is None for value, _ in measured):
            raise InvalidInputError(
                f"usage has none of the keys memory_mb, cpu_percent, num_processes and num_children, "
                f"only {sorted(map(str, usage))[:10]}; give what get_process_usage or get_container_usage returned"
            )
        return any(value is not None and value > limit for value, limit in measured)

    def get_system_resources(self) -> dict[str, float]:
        """Measure the machine; inside a container still the whole machine, not the container's limits.

        Returns:
            ``total_memory_mb``, ``available_memory_mb`` (free, or freed without swapping), ``memory_percent`` (not
            available), ``cpu_count`` (logical cores), ``cpu_percent`` (0 to 100 for all cores together, since the
            previous call; on the first call, the average since boot).
        """
        memory = psutil.virtual_memory()
        times = psutil.cpu_times()
        cores = psutil.cpu_count() or 1
        # Guest time is part of user time already; waiting for a disk is idling.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        self._machine = self._read((total - idle) / cores, self._machine, age_seconds=total / cores)
        return {
            "total_memory_mb": memory.total / MIB,
            "available_memory_mb": memory.available / MIB,
            "memory_percent": memory.percent,
            "cpu_count": cores,
            "cpu_percent": min(self._machine.percent, 100.0),
        }

    def kill_process(self, process_id: int, force: bool = False) -> bool:  # noqa: FBT001, FBT002 - the API as documented
        """Ask a process to end (SIGTERM), or with `force` end it (SIGKILL). Its children are left alone.

        The process meant is the one last measured under that id: a stranger who got the id since is not touched.

        Returns:
            True when the signal was sent; False when the process had ended already, which is no error. It does not
            wait for the end: after SIGTERM, look again and use `force`.

        Raises:
            InvalidInputError: The id is 1 or less, which means init or whole groups of processes; or this process's
                own; or it belongs to somebody else.
        """
        if process_id <= 1 or process_id == os.getpid():
            raise InvalidInputError(
                f"process {process_id} is not killed from here: ids up to 1 are init and groups, and a process does "
                "not end itself this way"
            )
        try:
            watched = self._processes.get(process_id)
            process = watched.process if watched else psutil.Process(process_id)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            process.kill() if force else process.terminate()
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            raise _denied(process_id, "signal") from None
        return True

    def _watch(self, process_id: int) -> _Watched:
        watched = self._processes.get(process_id)
        if watched is not None:
            if watched.process.is_running():
                return watched
            self._forget(process_id)
            raise _not_found(process_id, "has ended since it was last measured")
        try:
            process = psutil.Process(process_id)
        except psutil.AccessDenied:
            raise _denied(process_id, "look at") from None
        except (psutil.NoSuchProcess, ValueError):
            raise _not_found(process_id, "does not exist") from None
        if len(self._processes) >= _REMEMBERED_PROCESSES:
            self._processes = {pid: old for pid, old in self._processes.items() if old.process.is_running()}
        watched = self._processes[process_id] = _Watched(process)
        return watched

    def _forget(self, process_id: int) -> None:
        self._processes.pop(process_id, None)

    def _read(self, used_seconds: float, previous: _Reading | None, *, age_seconds: float) -> _Reading:
        """Return a reading of a counter of CPU seconds; the first one averages over the counter's whole life."""
        now = self._clock.monotonic()
        if previous is None:
            return _Reading(now, used_seconds, used_seconds / max(age_seconds, MIN_WINDOW_SECONDS) * 100.0)
        elapsed = now - previous.at
        if elapsed < MIN_WINDOW_SECONDS:
            return previous
        return _Reading(now, used_seconds, max(used_seconds - previous.used_seconds, 0.0) / elapsed * 100.0)


@dataclass(frozen=True, slots=True)
class _Reading:
    #: By the monotonic clock.
    at: float
    used_seconds: float
    percent: float


@dataclass(slots=True)
class _Watched:
    #: Remembers when the process was started, and so tells it from a later one with the same id.
    process: psutil.Process
    reading: _Reading | None = None


def _age_seconds(process: psutil.Process) -> float:
    # Linux notes a start in time since boot. psutil adds the boot time, known to a second only, to get a wall clock's
    # time; added here as well, it cancels out, and the age is exact also for a process that is a moment old.
    on_linux = sys.platform == "linux"
    now = time.clock_gettime(time.CLOCK_BOOTTIME) + psutil.boot_time() if on_linux else time.time()
    return now - process.create_time()


def _process_count(usage: Mapping[str, float]) -> float | None:
    count = _number(usage, "num_processes")
    if count is not None:
        return count
    children = _number(usage, "num_children")
    return None if children is None else children + 1


def _number(usage: Mapping[str, float], key: str) -> float | None:
    value: Any = usage.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InvalidInputError(f"usage has {value!r} for {key}, which is no number")
    return value


def _not_found(process_id: int, what: str) -> ProcessNotFoundError:
    return ProcessNotFoundError(f"process {process_id} {what}")


def _denied(process_id: int, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"process {process_id} belongs to somebody else, and this user may not {what} it; run as its owner or as root"
    )
