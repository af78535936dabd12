"""The system calls that a sandbox may make; what is not listed fails with EPERM. Pure data.

Sent with each container, so that the filter is the same on every engine: an old one's own default still lets through
``io_uring``, ``ptrace``, AF_VSOCK and more. Left out is what only containers' own tools, debuggers and kernel interfaces
with a history of exploits need; what a program in any language needs to compute, to work on files, to start processes and
to talk on sockets is in. Calls of another word size than the engine's own, as a 32-bit program makes them on a 64-bit
kernel, are not let through at all.

A profile in the engine's JSON form: https://docs.docker.com/engine/security/seccomp/
"""

from __future__ import annotations

import json
import socket
from errno import ENOSYS, EPERM
from typing import Any

_FILES = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate
    fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat
    fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir
    mkdirat mknod mknodat newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs
    statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes write
    writev
"""
_PROCESSES = """
    alarm arch_prctl capget capset execve execveat exit exit_group fork get_robust_list getegid geteuid getgid getgroups
    getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self membarrier pause pidfd_open pidfd_send_signal prctl
    prlimit64 restart_syscall riscv_flush_icache rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setpgid
    setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack signalfd signalfd4 tgkill times
    tkill vfork wait4 waitid
"""
_MEMORY = """
    brk madvise memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap pkey_alloc
    pkey_free pkey_mprotect
"""
_BETWEEN_PROCESSES = """
    eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
"""
_TIME = """
    clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
_SOCKETS = """
    accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait getpeername
    getsockname getsockopt listen poll ppoll pselect6 recvfrom recvmmsg recvmsg select sendmmsg sendmsg sendto setsockopt
    shutdown socketpair
"""
_MACHINE = "getcpu getrandom sysinfo uname"

#: What is let through whatever its arguments are.
ALLOWED = frozenset(
    f"{_FILES} {_PROCESSES} {_MEMORY} {_BETWEEN_PROCESSES} {_TIME} {_SOCKETS} {_MACHINE}".split()
)
#: Kinds of sockets; netlink is how a process lists its network interfaces. Not: AF_ALG, AF_VSOCK, AF_PACKET and the rest.
SOCKET_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
#: clone(2)'s flags for new namespaces, as one mask: of mounts, cgroups, UTS, IPC, users, processes and networks.
NAMESPACE_FLAGS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
#: personality(2)'s PER_LINUX, and its question what is set.
_PERSONALITIES = (0x0, 0xFFFFFFFF)
_S390X = {"arches": ["s390x"]}


def profile() -> dict[str, Any]:
    """Return the profile."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "syscalls": [
            {"names": sorted(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            *(_allow_if("socket", 0, int(family)) for family in SOCKET_FAMILIES),
            *(_allow_if("personality", 0, value) for value in _PERSONALITIES),
            # None of the mask's flags may be set. On s390x the arguments stand the other way round.
            _allow_if("clone", 0, NAMESPACE_FLAGS, op="SCMP_CMP_MASKED_EQ") | {"excludes": _S390X},
            _allow_if("clone", 1, NAMESPACE_FLAGS, op="SCMP_CMP_MASKED_EQ") | {"includes": _S390X},
            # Its flags are in memory, where no filter sees them; the C library then uses clone instead.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
        ],
    }


def _allow_if(name: str, argument: int, value: int, *, op: str = "SCMP_CMP_EQ") -> dict[str, Any]:
    args = [{"index": argument, "value": value, "op": op}]
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": args}


#: As the engine takes it, among a container's security options.
SECURITY_OPTION = "seccomp=" + json.dumps(profile(), separators=(",", ":"))
