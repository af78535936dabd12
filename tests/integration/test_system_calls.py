"""What an agent may ask the kernel for: `harness.sandbox.seccomp` on the real engine."""

from __future__ import annotations

import errno
import json
import platform

import pytest
from tests.sandboxes import Lab

#: Calls that harm, by their numbers on x86-64 and with arguments with which an unfiltered kernel answers something else
#: than EPERM to anybody, where there are such.
REFUSED = {
    "ptrace(PTRACE_TRACEME)": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0),
    "process_vm_writev": (311, 1, 0, 0, 0),
    "kcmp": (312, 1, 1, 99, 0),
    "io_uring_setup": (425, 1, 0),
    "io_uring_enter": (426, -1, 0),
    "io_setup": (206, 0, 0),
    "userfaultfd": (323, 0),
    "keyctl(KEYCTL_GET_KEYRING_ID)": (250, 0, -3, 0),
    "add_key": (248, 0, 0, 0),
    "request_key": (249, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0),
    "fanotify_init": (300, 0, 0),
    "mount": (165, 0, 0, 0),
    "umount2": (166, 0, 0),
    "fsopen": (430, 0, 0),
    "open_tree": (428, -1, 0, 0),
    "pivot_root": (155, 0, 0),
    "chroot": (161, 0),
    "setns": (308, -1, 0),
    "unshare(CLONE_NEWUSER)": (272, 0x10000000),
    "clone(CLONE_NEWUSER)": (56, 0x10000000 | 17, 0),
    "clone(CLONE_NEWNET)": (56, 0x40000000 | 17, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "name_to_handle_at": (303, -1, 0, 0),
    "init_module": (175, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0),
    "modify_ldt": (154, 0, 0, 0),
    "vmsplice": (278, -1, 0, 0),
    "personality(ADDR_NO_RANDOMIZE)": (135, 0x0040000),
    "memfd_secret": (447, 0),
    "quotactl": (179, 0, 0, 0),
    "syslog": (103, 3, 0, 0),
    "adjtimex": (159, 0),
    "socket(AF_ALG)": (41, 38, 5, 0),
    "socket(AF_VSOCK)": (41, 40, 1, 0),
    "socket(AF_PACKET)": (41, 17, 3, 0),
    "socket(AF_BLUETOOTH)": (41, 31, 3, 0),
}

by_number = pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls have other numbers here")


@by_number
async def test_calls_that_harm_are_refused(lab: Lab) -> None:
    code = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, (number, *arguments) in json.loads(CALLS).items():
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    found[name] = ctypes.get_errno() if answer == -1 else f"answered {answer}"
print(json.dumps(found))
"""
    ran = await lab.run(f"CALLS = {json.dumps(REFUSED)!r}\n{code}")

    assert ran.result.error is None, ran.stderr.decode()
    assert json.loads(ran.stdout) == dict.fromkeys(REFUSED, errno.EPERM)


@by_number
async def test_the_c_library_is_told_to_do_without_clone3(lab: Lab) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(435, None, 0), ctypes.get_errno())
"""
    ran = await lab.run(code)

    assert ran.stdout.decode().split() == ["-1", str(errno.ENOSYS)]


async def test_what_programs_need_works(lab: Lab) -> None:
    code = """
import asyncio, ctypes, fcntl, mmap, multiprocessing, os, select, signal, socket, sqlite3, subprocess, sys, tempfile
import threading, time
from concurrent.futures import ProcessPoolExecutor

def square(number):
    return number * number

def thread():
    done = []
    worker = threading.Thread(target=lambda: done.append(1))
    worker.start()
    worker.join()
    return done == [1]

def processes():
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(square, range(4))) == [0, 1, 4, 9]

def queue():
    channel = multiprocessing.Queue()
    child = multiprocessing.get_context("fork").Process(target=channel.put, args=(7,))
    child.start()
    answer = channel.get()
    child.join()
    return answer == 7

def program():
    return subprocess.run(["sh", "-c", "echo hello | tr a-z A-Z"], capture_output=True).stdout == b"HELLO\\n"

def loop():
    async def main():
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait() == 0
    return asyncio.run(main())

def sockets():
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    client.sendall(b"x")
    return server.accept()[0].recv(1) == b"x" and socket.socketpair()[0].fileno() > 0 and bool(socket.if_nameindex())

def files():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")
        with open(path, "w+b") as file:
            file.write(b"x" * 5000)
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            with mmap.mmap(file.fileno(), 0) as mapped:
                mapped[0] = 65
            os.posix_fallocate(file.fileno(), 0, 9000)
            os.fsync(file.fileno())
        os.symlink(path, path + "l"), os.link(path, path + "h"), os.mkfifo(path + "f"), os.rename(path, path + "r")
        os.utime(path + "r"), os.chmod(path + "r", 0o600), os.statvfs(folder)
        return sorted(os.listdir(folder)) == ["af", "ah", "al", "ar"]

def database():
    with tempfile.NamedTemporaryFile() as file, sqlite3.connect(file.name) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (n)")
        return db.execute("SELECT count(*) FROM t").fetchone() == (0,)

def machine():
    libc = ctypes.CDLL(None, use_errno=True)
    os.close(os.memfd_create("x")), os.close(os.eventfd(0)), os.close(libc.inotify_init1(0))
    os.close(libc.timerfd_create(1, 0)), os.close(os.pidfd_open(os.getpid()))
    os.sched_getaffinity(0), os.getloadavg(), os.uname(), os.urandom(8), os.nice(1), time.clock_gettime(1)
    signal.setitimer(signal.ITIMER_REAL, 60), signal.setitimer(signal.ITIMER_REAL, 0)
    select.epoll().close()
    return True

for check in (thread, processes, queue, program, loop, sockets, files, database, machine):
    print(check.__name__, check())
"""
    ran = await lab.run(code)

    assert ran.result.error is None, ran.stderr.decode()
    names = ["thread", "processes", "queue", "program", "loop", "sockets", "files", "database", "machine"]
    assert ran.stdout.decode().splitlines() == [f"{name} True" for name in names]
