"""Cases that try to use up the machine, or to stay for ever."""

from __future__ import annotations

from tests.abuse.case import Case, Judge, Seen, ends_with

from harness.config import MIB
from harness.models import Reason, Usage

_GROUP = "exhaustion"
#: Of every case here, unless it says otherwise: time enough for harm, and no more.
_SECONDS = {"timeout_seconds": 3, "grace_seconds": 1}
#: The product's default limits.
_MEMORY_BYTES, _OUTPUT_BYTES, _PROCESSES = 64 * MIB, 1 * MIB, 64


def _case(attack: str, expected: str, code: str, judge: Judge, **limits: float) -> Case:
    memory = {"max_memory_mb": _MEMORY_BYTES // MIB}
    return Case(_GROUP, attack, expected, code, judge, limits=_SECONDS | memory | limits)


def _bounded_processes(seen: Seen) -> str:
    peak = _usage(seen).peak_processes or 0
    seen.require(peak <= _PROCESSES, f"{peak} processes at once")
    return f"{seen.task.reason}; at most {peak} processes at once"


def _within_memory(*more: Reason) -> Judge:
    """Judge by the memory that was used, and by an end at its limit, by itself, or for one of `more` reasons."""
    reasons = (Reason.OUT_OF_MEMORY, Reason.EXIT_NONZERO, Reason.COMPLETED, *more)

    def judge(seen: Seen) -> str:
        peak = _usage(seen).peak_memory_bytes or 0
        seen.require(peak <= _MEMORY_BYTES, f"used {peak} bytes")
        seen.require(seen.task.reason in reasons, "not by its limit")
        return f"{seen.task.reason}; {peak / MIB:.0f} MiB at most"

    return judge


def _bounded_output(seen: Seen) -> str:
    kept = len(seen.stdout.encode()) + len(seen.stderr.encode())
    seen.require(kept <= _OUTPUT_BYTES + 1000, f"{kept} bytes of output were kept")
    return f"{seen.task.reason}; {kept / MIB:.2f} MiB kept of what it printed"


def _bounded_cpu(seen: Seen) -> str:
    used = _usage(seen)
    assert used.cpu_seconds is not None
    assert used.wall_seconds is not None
    # One processor's worth is allowed; a period of the scheduler's quota may be granted ahead.
    seen.require(used.cpu_seconds <= used.wall_seconds * 1.2 + 0.3, f"used {used.cpu_seconds} s of CPU")
    return f"{seen.task.reason}; {used.cpu_seconds:.1f} s of CPU in {used.wall_seconds:.1f} s"


def _said(*words: str) -> Judge:
    """Judge by what an agent printed at last, which is what it met with."""

    def judge(seen: Seen) -> str:
        seen.require(seen.task.reason is Reason.COMPLETED, "it did not end by itself")
        met = seen.stdout.split()
        seen.require(len(met) > 0 and met[0] in words, f"it met with {seen.stdout!r}")
        return f"{seen.stdout.strip()}"

    return judge


def _usage(seen: Seen) -> Usage:
    usage = seen.task.attempts[-1].usage
    assert usage is not None
    return usage


CASES = (
    _case(
        "fork bomb",
        "no more processes than its limit, gone at its time",
        """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        _bounded_processes,
    ),
    _case(
        "thread bomb",
        "no more threads than its limit of processes",
        """
import threading, time
made = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        made += 1
except RuntimeError:
    print('RuntimeError', 'after', made, 'threads')
import os, sys
sys.stdout.flush()
os._exit(0)
""",
        _said("RuntimeError"),
    ),
    _case(
        "memory bomb in the agent",
        "out_of_memory within its limit",
        """
kept = []
while True:
    kept.append(b'x' * 1_000_000)
""",
        _within_memory(),
    ),
    _case(
        "memory bomb in a child",
        "the child dies within the limit",
        """
import subprocess, sys
subprocess.run([sys.executable, '-c', "k=[]\\nwhile True: k.append(b'x' * 1_000_000)"])
""",
        _within_memory(),
    ),
    _case(
        "fill /tmp and /dev/shm",
        "no space left, or out_of_memory",
        """
for folder in ('/tmp', '/dev/shm'):
    try:
        with open(folder + '/x', 'wb') as file:
            while True:
                file.write(bytes(1 << 20))
    except OSError as error:
        print('errno', error.errno)
""",
        _within_memory(),
    ),
    _case(
        "page cache: write and delete for as long as it may",
        "its memory stays within the limit",
        """
import os
while True:
    try:
        with open('/tmp/x', 'wb') as file:
            for _ in range(20):
                file.write(bytes(1 << 20))
    except OSError:
        pass
    os.unlink('/tmp/x')
""",
        _within_memory(Reason.TIMEOUT),
    ),
    _case(
        "spin in forty processes",
        "one processor's worth in all, gone at its time",
        """
import os
for _ in range(40):
    if os.fork() == 0:
        break
while True:
    pass
""",
        _bounded_cpu,
    ),
    _case(
        "print ten gigabytes",
        "its cap of output is kept, and the run goes its way",
        """
import os
line = b'x' * 99 + b'\\n'
block = line * 10_000
for _ in range(10_000):
    os.write(1, block)
""",
        _bounded_output,
    ),
    _case(
        "print one endless line",
        "its cap of output is kept",
        """
import os
while True:
    os.write(1, b'x' * 65536)
""",
        _bounded_output,
    ),
    _case(
        "a million tiny writes, to both streams in turns",
        "its cap of output is kept",
        """
import os
for number in range(1_000_000):
    os.write(1 + number % 2, b'x')
""",
        _bounded_output,
        timeout_seconds=20,
    ),
    _case(
        "as many files in /tmp as there can be",
        "no space left, or its memory's limit",
        """
made = 0
try:
    while True:
        open(f'/tmp/{made}', 'w').close()
        made += 1
except OSError as error:
    print('ENOSPC' if error.errno == 28 else error.errno, 'after', made, 'files')
""",
        _within_memory(Reason.TIMEOUT),
    ),
    _case(
        "open files without end",
        "EMFILE at its limit",
        """
import errno, os
made = 0
try:
    while True:
        os.open('/dev/null', os.O_RDONLY)
        made += 1
except OSError as error:
    print(errno.errorcode[error.errno], 'after', made)
""",
        _said("EMFILE"),
    ),
    _case(
        "ignore SIGTERM and every other signal",
        "timeout, killed after the grace",
        """
import signal, time
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(1)
""",
        ends_with(Reason.TIMEOUT),
    ),
    _case(
        "stop itself",
        "timeout",
        """
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
""",
        ends_with(Reason.TIMEOUT),
    ),
    _case(
        "stop all processes it may, the supervisor among them",
        "timeout",
        """
import os, signal
if os.fork() == 0:
    while True:
        signal.pause()
os.kill(-1, signal.SIGSTOP)
os.kill(1, signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGSTOP)
""",
        ends_with(Reason.TIMEOUT),
    ),
    _case(
        "zombies by the thousand",
        "they are reaped, or count against its limit",
        """
import os
made = refused = 0
for _ in range(3000):
    try:
        if os.fork() == 0:
            os._exit(0)
        made += 1
    except OSError:
        refused += 1
print('EAGAIN' if refused else 'reaped', made, 'made')
""",
        _said("EAGAIN", "reaped"),
    ),
    _case(
        "orphans that go on after the agent",
        "they end with the run",
        """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
print('done')
""",
        _said("done"),
    ),
    _case(
        "sleep for exactly its time",
        "completed or timeout, and only one of them",
        """
import time
time.sleep(3)
print('slept')
""",
        ends_with(Reason.COMPLETED, Reason.TIMEOUT),
    ),
)
