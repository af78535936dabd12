"""The machine that figures are from, in the words that somebody needs who compares them with another's."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
from docker import APIClient

from harness.sandbox.engine import Engine


async def describe_machine(engine: Engine) -> dict[str, str]:
    """Return what is known, by a heading for it."""
    info = await engine.call(APIClient.info)
    return {
        "Date": datetime.now(UTC).date().isoformat(),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "Kernel": platform.release(),
        "Docker Engine": f"{info['ServerVersion']}, {info['DefaultRuntime']}",
        "Storage driver": str(info["Driver"]),
        "Cgroup": f"v{info.get('CgroupVersion', '1')}, {info['CgroupDriver']}",
        "Python": platform.python_version(),
        "Load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu_model() -> str:
    # proc(5); Arm kernels name no model.
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
