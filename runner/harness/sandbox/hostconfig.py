"""What a sandbox container is allowed: every limit and every lock-down, in one place. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from docker.types import ContainerConfig, HostConfig, LogConfig, Ulimit

from harness.ports import SandboxLabels, SandboxShape, WarmLabels
from harness.sandbox.seccomp import SECURITY_OPTION

LABEL_STORE = "io.agent-harness.store"
LABEL_TASK = "io.agent-harness.task"
LABEL_FENCE = "io.agent-harness.fence"
#: Of a container that stands beside an attempt's own and has its other labels as well: what it is for.
LABEL_ROLE = "io.agent-harness.role"
#: Of a container that waits for a task: who may use it, and until when, in seconds since 1970.
LABEL_OWNER = "io.agent-harness.owner"
LABEL_UNTIL = "io.agent-harness.until"

#: Nobody: no such user exists in any image, and no file belongs to it.
SANDBOX_USER = "10001:10001"
#: Nor is this one, which no agent is either.
RELAY_USER = "10002:10002"
RELAY_ROLE = "egress"
#: The image's program; see `harness.egress`.
RELAY_COMMAND = ("python3", "-I", "-S", "/opt/harness/egress_relay.py")
#: Python alone takes 8 MiB. What a relay holds of connections is bounded at 9 more, and what the system does, which some
#: kernels count as the container's, at 32.
RELAY_MEMORY_BYTES = 64 * 1024 * 1024
RELAY_CPUS = 0.5
#: It has one. The engine's own way of starting a process needs some for a moment.
RELAY_MAX_PROCESSES = 16
#: Open files per process.
MAX_OPEN_FILES = 1024
#: Bound on /dev/shm, which semaphores of `multiprocessing` need; memory, and counted as such.
MAX_SHM_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds containers in beside their limits. The operator's choice, never an agent's, and one for all containers."""

    #: One of the engine's runtimes, by its name; None: the engine's default.
    runtime: str | None = None
    #: An AppArmor profile, by its name; None: the engine's own, where the machine has AppArmor.
    apparmor_profile: str | None = None


#: As the engine does it by itself.
ENGINES_OWN = Isolation()


def container_name(labels: SandboxLabels) -> str:
    """Return the one name of a task's attempt, so that it can be removed even if its id never reached us."""
    return f"harness-{labels.store_id[:12]}-{labels.task_id}-{labels.fence}"


def relay_name(labels: SandboxLabels) -> str:
    """Return the name of the relay beside an attempt's container."""
    return f"{container_name(labels)}-egress"


def warm_name(store_id: str, token: str) -> str:
    """Return the name of a container until it has a task."""
    return f"harness-{store_id[:12]}-warm-{token}"


def container_labels(labels: SandboxLabels | WarmLabels) -> dict[str, str]:
    """Return the labels by which a container is found again."""
    if isinstance(labels, WarmLabels):
        until = str(int(labels.until.timestamp()))
        return {LABEL_STORE: labels.store_id, LABEL_OWNER: labels.owner, LABEL_UNTIL: until}
    return {LABEL_STORE: labels.store_id, LABEL_TASK: str(labels.task_id), LABEL_FENCE: str(labels.fence)}


def read_labels(labels: Mapping[str, str], name: str) -> SandboxLabels | WarmLabels | None:
    """Return what a container's labels and its name say; None when it was not made by us.

    A container that waited for a task can't change its labels any more when it gets one; its name says which it has.
    """
    try:
        store_id = labels[LABEL_STORE]
        if LABEL_OWNER not in labels:
            return SandboxLabels(store_id, int(labels[LABEL_TASK]), int(labels[LABEL_FENCE]))
        if given := re.fullmatch(r"harness-.{0,12}-([0-9]+)-([0-9]+)", name):
            return SandboxLabels(store_id, int(given[1]), int(given[2]))
        until = datetime.fromtimestamp(int(labels[LABEL_UNTIL]), UTC)
        return WarmLabels(store_id, labels[LABEL_OWNER], until)
    except (KeyError, ValueError, OverflowError):
        return None


def container_arguments(
    image: str,
    shape: SandboxShape,
    labels: SandboxLabels | WarmLabels,
    *,
    command: tuple[str, ...] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return keyword arguments for the SDK's ``create_container``, all but the name and the host config."""
    return {
        "image": image,
        "command": None,
        "entrypoint": list(command) if command else None,
        "user": SANDBOX_USER,
        "hostname": "sandbox",
        "environment": dict(environment or {}),
        "stdin_open": True,
        "labels": container_labels(labels),
        # Beside network_mode "none", which isolates as well: with this the engine leaves out its network hook
        # altogether, a process of its own that is half of a container's start (180 ms against 75).
        "network_disabled": shape.network == "none",
    }


def creation_body(
    image: str,
    shape: SandboxShape,
    labels: SandboxLabels | WarmLabels,
    api_version: str,
    *,
    isolation: Isolation = ENGINES_OWN,
    command: tuple[str, ...] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the engine is sent to create a container; `harness.sandbox.proxy` lets nothing else through."""
    host = _isolated(HostConfig(version=api_version, **host_config(shape)), isolation)
    arguments = container_arguments(image, shape, labels, command=command, environment=environment)
    body = ContainerConfig(api_version, host_config=host, **arguments)
    # As the SDK's own client does before it sends one.
    return {key: value for key, value in body.items() if value is not None}


def _isolated(host: HostConfig, isolation: Isolation) -> HostConfig:
    if isolation.runtime is not None:
        host["Runtime"] = isolation.runtime
    if isolation.apparmor_profile is not None:
        host["SecurityOpt"] = [*host["SecurityOpt"], f"apparmor={isolation.apparmor_profile}"]
    return host


def relay_body(
    image: str,
    labels: SandboxLabels,
    container_id: str,
    api_version: str,
    *,
    isolation: Isolation = ENGINES_OWN,
) -> dict[str, Any]:
    """Return what the engine is sent to create the relay of a container, with whom it shares the loopback.

    It has the locks of a sandbox, and less of everything; not even a /tmp.
    """
    shape = SandboxShape(None, RELAY_MEMORY_BYTES, RELAY_CPUS, RELAY_MAX_PROCESSES, tmp_bytes=0)
    options = host_config(shape) | {"network_mode": f"container:{container_id}"}
    # Files that it would only need to hold something.
    for key in ("tmpfs", "shm_size"):
        del options[key]
    body = ContainerConfig(
        api_version,
        image=image,
        command=[],
        entrypoint=list(RELAY_COMMAND),
        user=RELAY_USER,
        working_dir="/",
        stdin_open=True,
        labels={**container_labels(labels), LABEL_ROLE: RELAY_ROLE},
        host_config=_isolated(HostConfig(version=api_version, **options), isolation),
    )
    return {key: value for key, value in body.items() if value is not None}


def update_body(shape: SandboxShape) -> dict[str, int]:
    """Return what the engine is sent to give a container that waits the limits of another shape."""
    return {
        "Memory": shape.memory_bytes,
        "MemorySwap": shape.memory_bytes,
        "NanoCpus": nano_cpus(shape.cpus),
        "PidsLimit": shape.max_processes,
    }


def nano_cpus(cpus: float) -> int:
    """Return the engine's unit of processor time."""
    return round(cpus * 1_000_000_000)


def host_config(shape: SandboxShape) -> dict[str, Any]:
    """Return keyword arguments for the SDK's ``create_host_config``."""
    return {
        "mem_limit": shape.memory_bytes,
        # Equal to mem_limit: no swap. Left out, the engine adds the same again in swap.
        "memswap_limit": shape.memory_bytes,
        "nano_cpus": nano_cpus(shape.cpus),
        "pids_limit": shape.max_processes,
        "network_mode": "none" if shape.network == "none" else "bridge",
        "read_only": True,
        "tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,mode=1777,size={shape.tmp_bytes}"},  # noqa: S108
        "shm_size": min(shape.tmp_bytes, MAX_SHM_BYTES),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true", SECURITY_OPTION],
        "ipc_mode": "private",
        # Output reaches us by the attach stream; the engine keeps no copy that could fill its disk.
        "log_config": LogConfig(type=LogConfig.types.NONE),
        "ulimits": [
            Ulimit(name="nofile", soft=MAX_OPEN_FILES, hard=MAX_OPEN_FILES),
            Ulimit(name="core", soft=0, hard=0),
        ],
        # When the machine itself runs out of memory, sandboxes go first.
        "oom_score_adj": 500,
        "restart_policy": {"Name": "no"},
    }
