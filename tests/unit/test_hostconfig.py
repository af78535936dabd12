from __future__ import annotations

from typing import Any

from docker.types import HostConfig
from hypothesis import given
from hypothesis import strategies as st

from harness.config import MIB
from harness.ports import SandboxLabels, SandboxLimits, sandbox_shape
from harness.sandbox.hostconfig import (
    Isolation,
    container_labels,
    container_name,
    creation_body,
    host_config,
    relay_body,
    relay_name,
)
from harness.sandbox.seccomp import SECURITY_OPTION

LIMITS = st.builds(
    SandboxLimits,
    memory_bytes=st.integers(16, 1024 * 1024).map(lambda mib: mib * MIB),
    cpus=st.floats(0.01, 1024),
    max_processes=st.integers(8, 32768),
    tmp_bytes=st.integers(1, 1024 * 1024).map(lambda mib: mib * MIB),
    timeout_seconds=st.floats(0.1, 7 * 86400),
    grace_seconds=st.floats(0, 300),
    output_bytes=st.integers(1024, 256 * MIB),
    state_bytes=st.integers(256, 4 * MIB),
)


def as_sent(limits: SandboxLimits, network: Any = "none") -> dict[str, Any]:
    """What the SDK makes of it, which is what the engine gets."""
    return dict(HostConfig(version="1.41", **host_config(sandbox_shape(limits, image=None, network=network))))


@given(limits=LIMITS, network=st.sampled_from(["none", "open"]))
def test_every_limit_and_every_lock_down_is_there_for_any_limits(limits: SandboxLimits, network: str) -> None:
    sent = as_sent(limits, network)

    assert sent["Memory"] == sent["MemorySwap"] == limits.memory_bytes > 0
    assert sent["NanoCpus"] > 0
    assert abs(sent["NanoCpus"] / 1e9 - limits.cpus) < 1e-6
    assert sent["PidsLimit"] == limits.max_processes > 0
    assert sent["ReadonlyRootfs"] is True
    assert sent["CapDrop"] == ["ALL"]
    assert "CapAdd" not in sent
    assert sent["SecurityOpt"] == ["no-new-privileges:true", SECURITY_OPTION]
    assert sent["NetworkMode"] == {"none": "none", "open": "bridge"}[network]
    assert sent["IpcMode"] == "private"
    assert sent["LogConfig"]["Type"] == "none"
    assert sent["RestartPolicy"] == {"Name": "no"}
    assert 0 < sent["ShmSize"] <= 16 * MIB
    assert list(sent["Tmpfs"]) == ["/tmp"]
    options = sent["Tmpfs"]["/tmp"].split(",")
    assert f"size={limits.tmp_bytes}" in options
    assert {"noexec", "nosuid", "nodev"} <= set(options)
    assert {item["Name"] for item in sent["Ulimits"]} == {"nofile", "core"}


def test_a_runtime_and_a_profile_are_asked_for_beside_all_the_rest() -> None:
    shape = sandbox_shape(
        SandboxLimits(1 << 26, 1.0, 64, 1 << 24, 30, 1, 1 << 20, 1 << 16), image=None, network="none"
    )
    labels = SandboxLabels("ab" * 16, 7, 2)
    plain = creation_body("an-image", shape, labels, "1.41")
    isolated = creation_body("an-image", shape, labels, "1.41", isolation=Isolation("runsc", "harness-agent"))

    assert "Runtime" not in plain["HostConfig"]
    assert isolated == plain | {
        "HostConfig": plain["HostConfig"]
        | {
            "Runtime": "runsc",
            "SecurityOpt": [*plain["HostConfig"]["SecurityOpt"], "apparmor=harness-agent"],
        }
    }


@given(limits=LIMITS)
def test_nothing_of_the_host_is_let_in(limits: SandboxLimits) -> None:
    sent = as_sent(limits)

    for key in ("Binds", "Mounts", "Devices", "DeviceRequests", "PortBindings", "VolumesFrom", "ExtraHosts"):
        assert not sent.get(key)
    for key in ("PidMode", "UTSMode", "UsernsMode", "CgroupnsMode"):
        assert sent.get(key, "") != "host"
    assert not sent.get("Privileged")
    assert not sent.get("AutoRemove")
    assert not sent.get("OomKillDisable")


def test_labels_and_name_tell_store_task_and_fence() -> None:
    labels = SandboxLabels("0123456789abcdef", 42, 3)

    assert container_labels(labels) == {
        "io.agent-harness.store": "0123456789abcdef",
        "io.agent-harness.task": "42",
        "io.agent-harness.fence": "3",
    }
    assert container_name(labels) == "harness-0123456789ab-42-3"
    assert container_name(labels) != container_name(SandboxLabels("0123456789abcdef", 42, 4))


def test_a_relay_has_the_locks_of_a_sandbox_another_user_and_less_of_everything() -> None:
    labels = SandboxLabels("0123456789abcdef", 42, 3)
    body = relay_body("agent-harness/python:1", labels, "ab" * 32, "1.41")
    host = body["HostConfig"]

    assert relay_name(labels) == "harness-0123456789ab-42-3-egress"
    assert body["Labels"] == container_labels(labels) | {"io.agent-harness.role": "egress"}
    assert body["User"] == "10002:10002"
    assert host["NetworkMode"] == "container:" + "ab" * 32
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true", SECURITY_OPTION]
    assert host["Memory"] == host["MemorySwap"] == 64 * MIB
    assert host["LogConfig"]["Type"] == "none"
    assert host["RestartPolicy"] == {"Name": "no"}
    for key in ("Tmpfs", "Binds", "Mounts", "PidMode", "PortBindings", "Privileged"):
        assert not host.get(key)
