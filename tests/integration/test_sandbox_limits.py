"""What a running sandbox is held to, seen from inside and from outside."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from docker import APIClient
from tests.sandboxes import LIMITS, Lab

from harness.config import MIB
from harness.models import Reason
from harness.sandbox.seccomp import SECURITY_OPTION
from harness.sandbox.session import DockerSession


async def facts(lab: Lab, code: str, **changes: Any) -> Any:
    """Run code that prints one JSON document, and return it."""
    ran = await lab.run(code, **changes)
    assert ran.result.error is None, ran.stderr.decode()
    return json.loads(ran.stdout)


# What a run used


async def test_a_run_of_five_milliseconds_reports_plausible_usage(lab: Lab) -> None:
    ran = await lab.run("import time; time.sleep(0.005)")
    result = ran.result

    assert result.wall_seconds is not None
    assert 0.005 <= result.wall_seconds < 10
    # A Python interpreter: some megabytes, some milliseconds.
    assert 2 * MIB < (result.peak_memory_bytes or 0) <= LIMITS.memory_bytes
    assert 0.0001 < (result.cpu_seconds or 0) < 5


async def test_memory_and_cpu_time_of_descendants_count(lab: Lab) -> None:
    ran = await lab.run("""
import subprocess, sys
code = "import time\\nx = b'x' * (30 << 20)\\nwhile time.process_time() < 0.5: pass"
subprocess.run([sys.executable, "-c", code], check=True)
""")

    assert 30 * MIB < (ran.result.peak_memory_bytes or 0) <= LIMITS.memory_bytes
    assert 0.5 <= (ran.result.cpu_seconds or 0) < 10


async def test_cpu_time_of_processes_that_outlive_the_agent_counts(lab: Lab) -> None:
    ran = await lab.run("""
import os, time
if os.fork() == 0:
    while time.process_time() < 0.4: pass
    open("/tmp/burnt", "w").close()
    time.sleep(3600)
while not os.path.exists("/tmp/burnt"): time.sleep(0.01)
""")

    assert (ran.result.cpu_seconds or 0) >= 0.4


async def test_the_cpu_quota_is_kept(lab: Lab) -> None:
    ran = await lab.run(
        """
import os, time
end = time.monotonic() + 1.5
for _ in range(3): os.fork()
while time.monotonic() < end: pass
time.sleep(0.3)
""",
        cpus=0.5,
    )

    assert ran.result.wall_seconds is not None
    assert ran.result.cpu_seconds is not None
    # Eight processes that would take every core they get. A period of 100 ms can be overdrawn at both ends.
    assert ran.result.cpu_seconds < 0.5 * ran.result.wall_seconds + 0.3


# What the engine shows


async def test_inspect_shows_every_limit_and_label_and_no_secret(lab: Lab) -> None:
    seen: list[dict[str, Any]] = []
    nonces: list[str] = []

    async def look(session: DockerSession) -> None:
        nonces.append(session._nonce)
        seen.append(await lab.inspect(session.container_id))
        processes = await lab.engine.call(APIClient.top, session.container_id)
        seen[-1]["processes"] = processes

    ran = await lab.run(
        "mark_of_the_code = 1\nimport time\nprint('started')\ntime.sleep(1.5)\n",
        context={"key": "mark-of-the-context"},
        env={"PASSWORD": "mark-of-the-env"},
        during=look,
        max_processes=33,
        cpus=0.75,
        tmp_bytes=5 * MIB,
    )

    assert ran.result.error is None
    answer = seen[0]
    text = json.dumps(answer)
    for secret in ("mark_of_the_code", "mark-of-the-context", "mark-of-the-env", "PASSWORD", nonces[0]):
        assert secret not in text
    host = answer["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == LIMITS.memory_bytes
    assert host["NanoCpus"] == 750_000_000
    assert host["PidsLimit"] == 33
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true", SECURITY_OPTION]
    assert host["NetworkMode"] == "none"
    assert host["Privileged"] is False
    assert host["IpcMode"] == "private"
    assert host["PidMode"] == ""
    assert host["LogConfig"]["Type"] == "none"
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["AutoRemove"] is False
    assert not host["Binds"]
    assert not host["Devices"]
    assert f"size={5 * MIB}" in host["Tmpfs"]["/tmp"]
    assert answer["Mounts"] == []
    assert answer["Config"]["User"] == "10001:10001"
    assert (
        answer["Config"]["Labels"].items()
        >= {
            "io.agent-harness.store": lab.store_id,
            "io.agent-harness.task": "1",
            "io.agent-harness.fence": "1",
        }.items()
    )


# What the agent finds


async def test_an_agent_is_nobody_and_can_become_nobody_else(lab: Lab) -> None:
    found = await facts(
        lab,
        """
import json, os
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def refused(call, *args):
    try:
        call(*args)
    except PermissionError:
        return True
    return False
print(json.dumps({
    "ids": [*os.getresuid(), *os.getresgid()], "groups": sorted({10001, *os.getgroups()}),
    "caps": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privs": status["NoNewPrivs"], "setuid": refused(os.setuid, 0), "chroot": refused(os.chroot, "/tmp"),
    "nice": refused(os.nice, -5), "kill": refused(os.kill, 1, 0),
}))
""",
    )

    assert found == {
        "ids": [10001] * 6,
        "groups": [10001],
        "caps": ["0" * 16] * 5,
        "no_new_privs": "1",
        "setuid": True,
        "chroot": True,
        "nice": True,
        "kill": False,
    }


async def test_an_agent_sees_its_own_processes_only(lab: Lab) -> None:
    found = await facts(
        lab,
        "import json, os\nprint(json.dumps([sorted(p for p in os.listdir('/proc') if p.isdigit()), os.getpid()]))",
    )

    assert found == [["1", str(found[1])], found[1]]


async def test_nothing_can_be_written_outside_tmp_and_shm(lab: Lab) -> None:
    found = await facts(
        lab,
        """
import json, os
writable = set()
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/tmp", "/dev/shm")]
    for name in [*folders, *files]:
        path = os.path.join(folder, name)
        if os.access(path, os.W_OK) and not os.path.islink(path):
            writable.add(path)
refused = []
for path in ("/x", "/etc/x", "/opt/harness/x", "/var/tmp/x", "/run/x", "/home/x", "/usr/lib/x", "/dev/x", "/sys/x",
             "/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/x", "/proc/sysrq-trigger", "/proc/1/oom_score_adj"):
    try:
        open(path, "w")
    except OSError:
        refused.append(path)
for path in ("/tmp/x", "/dev/shm/x"):
    open(path, "w").write("fine")
print(json.dumps({"writable": sorted(writable), "refused": len(refused)}))
""",
    )

    # Device nodes that swallow or echo, and message queues, which the kernel bounds by itself (RLIMIT_MSGQUEUE).
    harmless = {"null", "zero", "full", "tty", "random", "urandom", "ptmx", "mqueue", "console", "fd", "core"}
    others = [path for path in found["writable"] if path.rpartition("/")[2] not in harmless]
    assert [path for path in others if not path.startswith("/dev/pts")] == []
    assert found["refused"] == 13


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
async def test_a_full_disk_is_an_error_that_the_agent_can_handle(lab: Lab, folder: str) -> None:
    found = await facts(
        lab,
        f"""
import errno, json
written = 0
try:
    with open("{folder}/fill", "wb", buffering=0) as file:
        while True:
            written += file.write(b"x" * 65536)
except OSError as error:
    print(json.dumps([errno.errorcode[error.errno], written]))
""",
        tmp_bytes=4 * MIB,
    )

    assert found[0] == "ENOSPC"
    assert 3 * MIB < found[1] <= 4 * MIB


async def test_nothing_in_tmp_can_be_executed(lab: Lab) -> None:
    ran = await lab.run(
        "import os\nopen('/tmp/x', 'w').write('#!/bin/sh\\n')\nos.chmod('/tmp/x', 0o755)\nos.execv('/tmp/x', ['x'])"
    )

    assert ran.reason is Reason.EXIT_NONZERO
    assert "PermissionError" in ran.error


async def test_the_supervisor_cannot_be_read_traced_or_limited_into_a_forgery(lab: Lab) -> None:
    found = await facts(
        lab,
        """
import ctypes, json, os, resource
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name in ("mem", "environ", "maps", "auxv", "stack", "syscall"):
    try:
        with open(f"/proc/1/{name}", "rb") as file:
            file.read(1)
        found[name] = "readable"
    except OSError as error:
        found[name] = type(error).__name__
for name in ("fd", "fdinfo", "map_files", "cwd/"):
    try:
        found[name] = os.listdir(f"/proc/1/{name}")
    except OSError as error:
        found[name] = type(error).__name__
found["ptrace"] = libc.ptrace(16, 1, 0, 0)
buffer = ctypes.create_string_buffer(8)
class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
local, remote = IoVec(ctypes.addressof(buffer), 8), IoVec(0x400000, 8)
found["process_vm_readv"] = libc.process_vm_readv(1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
print(json.dumps(found))
""",
    )

    assert found == {
        **dict.fromkeys(
            ("mem", "environ", "maps", "auxv", "stack", "syscall", "fd", "fdinfo", "map_files", "cwd/"),
            "PermissionError",
        ),
        "ptrace": -1,
        "process_vm_readv": -1,
    }


async def test_the_nonce_was_never_in_the_agents_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    nonce, canary = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    monkeypatch.setattr(secrets, "token_hex", lambda _count: nonce)

    ran = await lab.run(
        """
import re
found = set()
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        start, end, mode = re.match(r"(\\w+)-(\\w+) (\\S+)", line).groups()
        if mode.startswith("rw") and "[v" not in line:
            memory.seek(int(start, 16))
            found |= set(re.findall(rb"[0-9a-f]{32}", memory.read(int(end, 16) - int(start, 16))))
print(sorted(found))
""",
        env={"CANARY": canary},
    )

    assert ran.result.error is None
    assert canary in ran.stdout.decode()
    assert nonce not in ran.stdout.decode()


async def test_there_is_no_network_but_a_loopback(lab: Lab) -> None:
    found = await facts(
        lab,
        """
import json, os, socket
found = {"interfaces": [name for _, name in socket.if_nameindex()]}
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    found["outside"] = os.strerror(error.errno)
try:
    socket.getaddrinfo("example.com", 80)
except OSError as error:
    found["names"] = type(error).__name__
found["localhost"] = socket.gethostbyname("localhost")
with socket.create_server(("localhost", 0)) as server:
    with socket.create_connection(server.getsockname(), timeout=5) as client:
        server.accept()[0].sendall(b"hello")
        found["loopback"] = client.recv(5).decode()
print(json.dumps(found))
""",
    )

    assert found["interfaces"][0] == "lo"
    assert not [name for name in found["interfaces"] if name.startswith("eth")]
    assert found["outside"] == "Network is unreachable"
    assert found["names"] == "gaierror"
    assert found["localhost"] == "127.0.0.1"
    assert found["loopback"] == "hello"


async def test_open_files_and_core_dumps_are_bounded(lab: Lab) -> None:
    found = await facts(
        lab,
        "import json, resource as r\nprint(json.dumps([r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_CORE)]))",
    )

    assert found == [[1024, 1024], [0, 0]]


async def test_containers_share_nothing(lab: Lab) -> None:
    first = await lab.run("open('/tmp/left', 'w').write('x'); open('/dev/shm/left', 'w').write('x')")
    second = await lab.run("import os; print(os.listdir('/tmp'), os.listdir('/dev/shm'))")

    assert first.reason is Reason.COMPLETED
    assert second.stdout == b"['agent'] []\n"
