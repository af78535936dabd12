"""What a container uses, out of the Docker Engine's stats answers, on cgroup v1 and v2 alike.

The rules are those of ``docker stats`` (docker/cli, ``cli/command/container/stats_helpers.go``), so that people see the
same numbers in both places. Pure but for `sample_usage`, and free of the Docker SDK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harness.config import MIB

if TYPE_CHECKING:
    from harness.ports import Clock

#: Time between the two samples of `sample_usage`. CPU time is counted in nanoseconds, so a short window is exact.
SAMPLE_INTERVAL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """What a container uses. None: the engine does not say."""

    #: Memory without the page cache that the kernel can drop at once, as ``docker stats`` shows it.
    memory_mb: float | None
    #: Per cent of one core between the two samples, so 200.0 is two full cores.
    cpu_percent: float | None
    #: Processes and threads (the kernel's pids controller counts both).
    num_processes: int | None
    #: The limit in force; the machine's memory where the container has none.
    memory_limit_mb: float | None = None
    #: Highest memory so far, page cache included. The engine knows it on cgroup v1 only.
    peak_memory_mb: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Return what is known, by field name; the shape `harness.resources.ResourceManager` hands out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


#: A container that has ended: nothing runs in it any more, and the engine answers with empty sections.
NOT_RUNNING = ContainerUsage(memory_mb=0.0, cpu_percent=0.0, num_processes=0)


def usage_from_stats(stats: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> ContainerUsage:
    """Read one answer of ``GET /containers/{id}/stats``.

    Args:
        stats: The decoded answer.
        previous: An earlier answer for the same container, to measure the CPU from. None: the ``precpu_stats`` of
            `stats`, which are empty in answers to ``one-shot=true``; `cpu_percent` is None then.

    Returns:
        `NOT_RUNNING` for a container that is created, exited or dead.
    """
    if not is_running(stats):
        return NOT_RUNNING
    if previous is None:
        earlier_cpu, earlier_read = _section(stats, "precpu_stats"), _instant(stats.get("preread"))
    else:
        earlier_cpu, earlier_read = _section(previous, "cpu_stats"), _instant(previous.get("read"))
    memory = _section(stats, "memory_stats")
    return ContainerUsage(
        memory_mb=_mib(_used_memory(memory)),
        cpu_percent=_cpu_percent(
            _section(stats, "cpu_stats"), earlier_cpu, _elapsed_ns(earlier_read, _instant(stats.get("read")))
        ),
        num_processes=_number(_section(stats, "pids_stats"), "current"),
        memory_limit_mb=_mib(_number(memory, "limit")),
        peak_memory_mb=_mib(_number(memory, "max_usage")),
    )


def is_running(stats: Mapping[str, Any]) -> bool:
    """Tell whether a stats answer is about a running container: the engine never sampled one that is not."""
    return _instant(stats.get("read")) is not None


def cpu_nanoseconds(stats: Mapping[str, Any]) -> int | None:
    """Return the CPU time that a container used since its start."""
    return _number(_section(_section(stats, "cpu_stats"), "cpu_usage"), "total_usage")


async def sample_usage(
    fetch: Callable[[], Awaitable[Mapping[str, Any]]],
    *,
    clock: Clock,
    interval_seconds: float = SAMPLE_INTERVAL_SECONDS,
) -> ContainerUsage:
    """Measure a container by two one-shot samples.

    The engine's own way, ``stream=false`` alone, was measured to take 2.0 s on Docker 20.10; two one-shot samples take
    1.0 s there, because that release answers at its next collection tick, and about `interval_seconds` where
    ``one-shot`` is answered at once. An engine too old to know ``one-shot`` (before API 1.41) answers slowly but right.

    Args:
        fetch: Requests ``GET /containers/{id}/stats?stream=false&one-shot=true`` and decodes the answer.
        clock: Waits between the samples.
        interval_seconds: How long to wait.

    Returns:
        The usage; `NOT_RUNNING` when the container ends meanwhile. What `fetch` raises is passed on.
    """
    first = await fetch()
    if not is_running(first):
        return NOT_RUNNING
    await clock.sleep(interval_seconds)
    return usage_from_stats(await fetch(), first)


def _section(stats: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = stats.get(name)
    return section if isinstance(section, Mapping) else {}


def _number(section: Mapping[str, Any], name: str) -> int | None:
    value = section.get(name)
    return value if isinstance(value, int) else None


def _used_memory(memory: Mapping[str, Any]) -> int | None:
    usage = _number(memory, "usage")
    if usage is None:
        return None
    details = _section(memory, "stats")
    # cgroup v1 has both names, and there the plain one leaves out child cgroups. v2 has only the plain one.
    for name in ("total_inactive_file", "inactive_file"):
        inactive = _number(details, name)
        if inactive is not None and inactive < usage:
            return usage - inactive
    return usage


def _cpu_percent(now: Mapping[str, Any], before: Mapping[str, Any], elapsed_ns: float | None) -> float | None:
    used_now = _number(_section(now, "cpu_usage"), "total_usage")
    used_before = _number(_section(before, "cpu_usage"), "total_usage")
    if used_now is None or used_before is None:
        return None
    window_ns = elapsed_ns or _system_window_ns(now, before)
    if window_ns is None:
        return None
    return max(used_now - used_before, 0) / window_ns * 100.0


def _system_window_ns(now: Mapping[str, Any], before: Mapping[str, Any]) -> float | None:
    """Elapsed time by the machine's own CPU clock, as docker's CLI reckons: right, but in steps of 10 ms a core."""
    system_now, system_before = _number(now, "system_cpu_usage"), _number(before, "system_cpu_usage")
    cores = _number(now, "online_cpus") or len(_section(now, "cpu_usage").get("percpu_usage") or ())
    if system_now is None or system_before is None or system_now <= system_before or not cores:
        return None
    return (system_now - system_before) / cores


def _elapsed_ns(before: datetime | None, now: datetime | None) -> float | None:
    if before is None or now is None or now <= before:
        return None
    return (now - before).total_seconds() * 1e9


def _instant(text: object) -> datetime | None:
    """Parse the engine's timestamp; None for Go's zero time, which stands for 'never sampled'."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / MIB
