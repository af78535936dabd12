"""What a sandbox container is allowed: every limit and every lock-down, in one place. Pure."""

from __future__ import annotations

from typing import Any, Literal

from docker.types import ContainerConfig, HostConfig, LogConfig, Ulimit

from harness.ports import SandboxLabels, SandboxLimits, SandboxSpec

LABEL_STORE = "io.agent-harness.store"
LABEL_TASK = "io.agent-harness.task"
LABEL_FENCE = "io.agent-harness.fence"

#: Nobody: no such user exists in any image, and no file belongs to it.
SANDBOX_USER = "10001:10001"
#: Open files per process.
MAX_OPEN_FILES = 1024
#: Bound on /dev/shm, which semaphores of `multiprocessing` need; memory, and counted as such.
MAX_SHM_BYTES = 16 * 1024 * 1024


def container_name(labels: SandboxLabels) -> str:
    """Return the one name of a task's attempt, so that it can be removed even if its id never reached us."""
    return f"harness-{labels.store_id[:12]}-{labels.task_id}-{labels.fence}"


def container_labels(labels: SandboxLabels) -> dict[str, str]:
    """Return the labels by which a container is found again."""
    return {LABEL_STORE: labels.store_id, LABEL_TASK: str(labels.task_id), LABEL_FENCE: str(labels.fence)}


def container_arguments(image: str, spec: SandboxSpec) -> dict[str, Any]:
    """Return keyword arguments for the SDK's ``create_container``, all but the name and the host config."""
    return {
        "image": image,
        "command": None,
        "entrypoint": list(spec.command) if spec.command else None,
        "user": SANDBOX_USER,
        "hostname": "sandbox",
        "environment": dict(spec.environment),
        "stdin_open": True,
        "labels": container_labels(spec.labels),
        # Beside network_mode "none", which isolates as well: with this the engine leaves out its network hook
        # altogether, a process of its own that is half of a container's start (180 ms against 75).
        "network_disabled": spec.network == "none",
    }


def creation_body(image: str, spec: SandboxSpec, api_version: str) -> dict[str, Any]:
    """Return what the engine is sent to create a container; `harness.sandbox.proxy` lets nothing else through."""
    host = HostConfig(version=api_version, **host_config(spec.limits, spec.network))
    body = ContainerConfig(api_version, host_config=host, **container_arguments(image, spec))
    # As the SDK's own client does before it sends one.
    return {key: value for key, value in body.items() if value is not None}


def host_config(limits: SandboxLimits, network: Literal["none", "open"]) -> dict[str, Any]:
    """Return keyword arguments for the SDK's ``create_host_config``."""
    return {
        "mem_limit": limits.memory_bytes,
        # Equal to mem_limit: no swap. Left out, the engine adds the same again in swap.
        "memswap_limit": limits.memory_bytes,
        "nano_cpus": round(limits.cpus * 1_000_000_000),
        "pids_limit": limits.max_processes,
        "network_mode": "none" if network == "none" else "bridge",
        "read_only": True,
        "tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,mode=1777,size={limits.tmp_bytes}"},  # noqa: S108
        "shm_size": min(limits.tmp_bytes, MAX_SHM_BYTES),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
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
