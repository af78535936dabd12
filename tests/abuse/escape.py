"""Cases that try to leave the sandbox, or to reach what is outside of it."""

from __future__ import annotations

from tests.abuse.case import Case, Seen, attempts, nothing_got

from harness.models import Reason

_GROUP = "escape and reach"


def _refused(attack: str, what: dict[str, str]) -> Case:
    limits = {"timeout_seconds": 20}
    return Case(_GROUP, attack, "each is refused", attempts(what), nothing_got, limits)


def _goes_on(seen: Seen) -> str:
    seen.require(seen.task.reason is Reason.COMPLETED, "the supervisor did not survive it")
    seen.require(seen.stdout.endswith("still here\n"), "the agent did not go on")
    return "no effect; the run completed"


CASES = (
    _refused(
        "mount a file system, change the root",
        {
            "tmpfs": "libcall('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
            "proc": "libcall('mount', b'proc', b'/tmp', b'proc', 0, None)",
            "bind": "libcall('mount', b'/etc', b'/tmp', None, 4096, None)",
            "remount /": "libcall('mount', b'none', b'/', None, 32, None)",
            "umount /proc/kcore": "libcall('umount2', b'/proc/kcore', 2)",
            "pivot_root": "call(155, 0, 0)",
            "chroot": "os.chroot('/tmp')",
            "fsopen": "call(430, 0, 0)",
            "open_tree": "call(428, -100, 0, 1)",
        },
    ),
    _refused(
        "enter new or other namespaces",
        {
            "unshare user": "libcall('unshare', 0x10000000)",
            "unshare mount": "libcall('unshare', 0x00020000)",
            "unshare network": "libcall('unshare', 0x40000000)",
            "clone user": "call(56, 0x10000000 | 17, 0)",
            "clone3": "call(435, 0, 0)",
            "setns": "libcall('setns', os.open('/proc/1/ns/net', os.O_RDONLY), 0)",
            "the program unshare": "subprocess.run(['unshare', '-Ur', 'true'], check=True, capture_output=True)",
        },
    ),
    _refused(
        "trace or read the supervisor, process 1",
        {
            "ptrace attach": "call(101, 16, 1, 0, 0)",
            "ptrace seize": "call(101, 0x4206, 1, 0, 0)",
            "read /proc/1/mem": "open('/proc/1/mem', 'rb').read(1)",
            "read /proc/1/environ": "open('/proc/1/environ').read()",
            "list /proc/1/fd": "os.listdir('/proc/1/fd')",
            "process_vm_readv": "call(310, 1, 0, 0, 0, 0, 0)",
            "pidfd_getfd": "call(438, os.pidfd_open(1), 0, 0)",
            "limit its files": "call(302, 1, 7, id(bytes(16)) + 32, 0)",
        },
    ),
    Case(
        _GROUP,
        "SIGKILL and SIGSTOP for the supervisor",
        "no effect",
        """
import os, signal, time
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    os.kill(1, number)
time.sleep(0.2)
print('still here')
""",
        _goes_on,
    ),
    _refused(
        "raw sockets and kernel interfaces behind sockets",
        {
            "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
            "AF_ALG": "socket.socket(38, socket.SOCK_SEQPACKET, 0)",
            "AF_VSOCK": "socket.socket(40, socket.SOCK_STREAM, 0)",
            "AF_BLUETOOTH": "socket.socket(31, socket.SOCK_RAW, 1)",
            "AF_KEY": "socket.socket(15, socket.SOCK_RAW, 2)",
        },
    ),
    _refused(
        "kernel interfaces with a history of exploits",
        {
            "bpf": "call(321, 0, 0, 0)",
            "perf_event_open": "call(298, 0, 0, -1, -1, 0)",
            "keyctl": "call(250, 0, -3, 0)",
            "add_key": "call(248, 0, 0, 0, 0, -3)",
            "userfaultfd": "call(323, 0)",
            "io_uring_setup": "call(425, 1, 0)",
            "io_setup": "call(206, 1, 0)",
            "fanotify_init": "call(300, 0, 0)",
            "open_by_handle_at": "call(304, -100, 0, 0)",
            "vmsplice": "call(278, 0, 0, 0, 0)",
            "modify_ldt": "call(154, 0, 0, 0)",
            "init_module": "call(175, 0, 0, 0)",
            "kexec_load": "call(246, 0, 0, 0, 0)",
            "AIO by its name": "call(209, 0, 0, 0)",
        },
    ),
    _refused(
        "the kernel by way of /proc and /sys",
        {
            "sysrq-trigger": "put('/proc/sysrq-trigger', 'h')",
            "kcore": "found(open('/proc/kcore', 'rb').read(1))",
            "core_pattern": "put('/proc/sys/kernel/core_pattern', '|/tmp/x')",
            "modprobe": "put('/proc/sys/kernel/modprobe', '/tmp/x')",
            "uevent_helper": "put('/sys/kernel/uevent_helper', '/tmp/x')",
            "kmsg": "open('/dev/kmsg').read(1)",
            "timer_list": "found(open('/proc/timer_list').read())",
            "own oom score, lower": "put('/proc/self/oom_score_adj', '-1000')",
        },
    ),
    _refused(
        "control groups: raise one's own limits, release_agent",
        {
            path: f"wrote(glob.glob({path!r}, recursive=True), '9')"
            for path in (
                "/sys/fs/cgroup/**/memory.limit_in_bytes",
                "/sys/fs/cgroup/**/memory.max",
                "/sys/fs/cgroup/**/pids.max",
                "/sys/fs/cgroup/**/cgroup.procs",
                "/sys/fs/cgroup/**/release_agent",
                "/sys/fs/cgroup/**/notify_on_release",
            )
        },
    ),
    _refused(
        "devices: make one, open the machine's",
        {
            "mknod block": "os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
            "mknod character": "os.mknod('/tmp/mem', 0o600 | stat.S_IFCHR, os.makedev(1, 1))",
            "/dev/mem": "open('/dev/mem', 'rb')",
            "/dev/sda": "open('/dev/sda', 'rb')",
            "/dev/kvm": "open('/dev/kvm', 'rb')",
            "/dev/fuse": "open('/dev/fuse', 'rb')",
            "/dev/net/tun": "open('/dev/net/tun', 'rb')",
        },
    ),
    _refused(
        "become root: by call, by capability, by su",
        {
            "setuid": "os.setuid(0)",
            "setgid": "os.setgid(0)",
            "setgroups": "os.setgroups([0])",
            "capability": "found(line for line in lines('/proc/self/status', 'Cap') if int(line.split()[1], 16))",
            "new privileges": "found(set(lines('/proc/self/status', 'NoNewPrivs')) - {'NoNewPrivs:\\t1\\n'})",
            "su": "found(subprocess.run(['su', '-c', 'id -u'], capture_output=True, input=b'').stdout)",
        },
    ),
    _refused(
        "write outside /tmp, /dev/shm and /dev/mqueue, which are its own",
        {
            "every folder": "found(path for path, _, _ in places() if os.access(path, os.W_OK))",
            "a new file in /": "open('/x', 'w')",
            "/etc/passwd": "open('/etc/passwd', 'a')",
            "by a symlink in /tmp": "(os.symlink('/etc/passwd', '/tmp/link'), open('/tmp/link', 'a'))",
            "by /proc/self/root": "open('/proc/self/root/etc/x', 'w')",
            "by /proc/self/cwd": "(os.chdir('/'), open('/proc/self/cwd/x', 'w'))",
            "by a hard link": "os.link('/etc/passwd', '/tmp/hard')",
        },
    ),
    _refused(
        "run a program from /tmp",
        {
            "a script": "(put('/tmp/s', '#!/bin/sh\\n'), os.chmod('/tmp/s', 0o755), subprocess.run(['/tmp/s']))",
            "a copied binary": "(shutil.copy('/bin/true', '/tmp/b'), subprocess.run(['/tmp/b']))",
        },
    ),
    _refused(
        "the engine's socket, the store, the runner's environment",
        {
            "docker.sock": "connect(socket.AF_UNIX, '/var/run/docker.sock')",
            "containerd.sock": "connect(socket.AF_UNIX, '/run/containerd/containerd.sock')",
            "the abstract socket of a shim": "found(lines('/proc/net/unix', 'containerd'))",
            "the store's file": "found(name for _, _, names in places() for name in names if 'harness.db' in name)",
            "settings of the runner": "found(name for name in os.environ if name.startswith('HARNESS_'))",
            "volumes of the machine": "found(lines('/proc/self/mountinfo', '/var/lib/docker/volumes'))",
        },
    ),
    _refused(
        "the network: this machine, its neighbours, metadata, names",
        {
            "the bridge": "connect(socket.AF_INET, ('172.17.0.1', 22))",
            "a neighbour": "connect(socket.AF_INET, ('172.17.0.2', 80))",
            "metadata over IPv4": "connect(socket.AF_INET, ('169.254.169.254', 80))",
            "metadata over IPv6": "connect(socket.AF_INET6, ('fd00:ec2::254', 80))",
            "the API server": "connect(socket.AF_INET, ('127.0.0.1', 8000))",
            "the Internet": "connect(socket.AF_INET, ('1.1.1.1', 443))",
            "a datagram": "connect(socket.AF_INET, ('8.8.8.8', 53), socket.SOCK_DGRAM)",
            "DNS": "socket.getaddrinfo('example.com', 80)",
            "interfaces but lo": "found(name for _, name in socket.if_nameindex() if name != 'lo'"
            " and int(lines(f'/sys/class/net/{name}/flags', '')[0], 16) & 1)",
        },
    ),
)
