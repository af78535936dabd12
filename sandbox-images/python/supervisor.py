"""PID 1 of a Python sandbox: takes one job from stdin, runs it in a forked child, reports on stdout, waits to be let go.

The child is forked *before* anything is read, so that the nonce which proves a report genuine never was in the memory
of a process that runs agent code; and this process makes itself unreadable (PR_SET_DUMPABLE) before the child gets
its job. What may be changed here must keep these two orders. What the child does is in ``harness_child.py``. The wire
format is described, and parsed, in ``harness/sandbox/frames.py``; change both together.

Standard library only, and as little of it as can be: every container pays for each import before its first job, so also
`signal`, `ctypes`, `hashlib` and `typing` are left out, or are represented by the C modules beneath them.
"""

import os
import select
import sys
import time

import harness_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType
    from typing import Any
else:
    import _signal as signal

JOB_MAGIC = b"AHJ1"
RESULT_MAGIC = b"\x00AHR1"
END_MAGIC = b"\x00AHE1"
#: Exit code for "stdin closed": the runner is gone, so nobody waits for a report.
EXIT_RUNNER_GONE = 113
#: What the runner allows beyond the wall time before this process ends the run itself: it may be frozen or cut off.
BACKSTOP_SECONDS = 5.0
#: How long it stays after its report, unless the runner closes stdin, as it does when it removes the container.
LINGER_SECONDS = 10.0
MAX_ERROR_BYTES = 4096
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
#: signalfd(2): flags, the size of a set of signals as libc takes it and of what is read, and codes of siginfo_t.
SFD_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
SIGSET_BYTES = 128
SIGNAL_BYTES = 128
SI_USER = 0
SI_KERNEL = 0x80


def main() -> None:
    """Run one job."""
    job_read, job_write = os.pipe()
    report_read, report_write = os.pipe()
    agent = os.fork()
    if agent == 0:
        os.close(job_write)
        os.close(report_read)
        import harness_child

        harness_child.main(job_read, report_write)
    os.close(job_read)
    os.close(report_write)
    forbid_inspection()
    Supervisor(agent, job_write, report_read).run()


class Supervisor:
    """Watches the agent until it ended, then reports."""

    def __init__(self, agent: int, job_pipe: int, report_pipe: int) -> None:
        self.agent = agent
        self.job_pipe = job_pipe
        self.inbox = bytearray()
        self.reports = Reports(report_pipe)
        self.private: dict[str, Any] = {}
        self.status: int | None = None
        self.cpu_seconds = 0.0
        self.max_rss_bytes = 0
        self.started_at = 0.0
        self.ended_at = 0.0
        self.stopped_by: str | None = None
        self.kill_at: float | None = None

    def run(self) -> None:
        """Take the job, wait for the agent's end, report."""
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noop)
        sigterm = open_sigterm()
        # Python's own handler would let the agent end this process; without one the kernel spares PID 1: pid_namespaces(7).
        signal.signal(signal.SIGINT, signal.SIG_DFL)

        poll = select.poll()
        for fd in (0, wake_read, sigterm, self.reports.fd):
            poll.register(fd, select.POLLIN)
        while self.status is None:
            for fd, _ in poll.poll(self._poll_milliseconds()):
                if fd == 0:
                    self._read_stdin()
                elif fd == wake_read:
                    os.read(wake_read, 4096)
                elif fd == sigterm:
                    if is_from_outside(os.read(sigterm, SIGNAL_BYTES)):
                        self._stop("signal")
                elif not self.reports.read():
                    poll.unregister(fd)
            self._reap()
            self._kill_when_due()
        self.ended_at = time.monotonic()
        is_alone = self._end_all_others()
        while self.reports.read():
            pass
        self.reports.finish()
        digest = self._write_result()
        if is_alone and digest is not None:
            write_all(2, END_MAGIC + self.private["nonce"].encode() + digest)
            self._linger()

    def _kill_when_due(self) -> None:
        # A process that was just reaped can't be killed; nor may an end by itself be called a kill.
        if self.status is None and self.kill_at is not None and time.monotonic() >= self.kill_at:
            self.stopped_by = self.stopped_by or "backstop"
            self.kill_at = None
            os.kill(self.agent, signal.SIGKILL)

    def _poll_milliseconds(self) -> float | None:
        if self.kill_at is None:
            return None
        return max(0.0, self.kill_at - time.monotonic()) * 1000 + 1

    def _stop(self, by: str) -> None:
        if self.stopped_by is None and self.status is None:
            self.stopped_by = by
            self.kill_at = time.monotonic() + float(self.private.get("grace_seconds", 0))
            os.kill(self.agent, signal.SIGTERM)

    def _read_stdin(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            # Only our supervisor's runner holds the other end. All processes of this namespace end with PID 1.
            os._exit(EXIT_RUNNER_GONE)
        self.inbox += data
        while len(self.inbox) >= 9:
            if self.inbox[:4] != JOB_MAGIC:
                sys.exit("supervisor: stdin holds no frame of the harness")
            length = int.from_bytes(self.inbox[5:9], "big")
            if len(self.inbox) < 9 + length:
                return
            kind, payload = self.inbox[4:5], bytes(self.inbox[9 : 9 + length])
            del self.inbox[: 9 + length]
            if kind == b"P":
                self.private = harness_json.loads(payload)
                self.reports.max_bytes = self.private["state_bytes"] + 16 * 1024
            elif kind == b"J":
                self._hand_over(payload)
            elif kind == b"S":
                self._stop("runner")

    def _hand_over(self, payload: bytes) -> None:
        self.started_at = time.monotonic()
        self.kill_at = (
            self.started_at
            + self.private["timeout_seconds"]
            + self.private["grace_seconds"]
            + BACKSTOP_SECONDS
        )
        view = memoryview(len(payload).to_bytes(4, "big") + payload)
        try:
            while view:
                view = view[os.write(self.job_pipe, view) :]
            os.close(self.job_pipe)
        except BrokenPipeError:
            pass  # it was killed before it had its job; its status tells

    def _reap(self) -> bool:
        """Collect the ended; return whether any process is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            self.max_rss_bytes = max(self.max_rss_bytes, usage.ru_maxrss * 1024)
            if pid == self.agent:
                self.status = status

    def _end_all_others(self) -> bool:
        """End all other processes; return whether none is left, so that nobody else holds stdout and stderr."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if not self._reap():
                return True
            time.sleep(0.001)
        return False

    def _linger(self) -> None:
        """Stay until stdin is closed: the engine would begin at once to take the container of an ended PID 1 down."""
        signal.signal(signal.SIGTERM, lambda _signal, _frame: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        poll = select.poll()
        poll.register(0, select.POLLIN)
        deadline = time.monotonic() + LINGER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            # What comes now, such as a stop, comes too late.
            if poll.poll(left * 1000) and not os.read(0, 1 << 16):
                return

    def _write_result(self) -> bytes | None:
        """Write the result frame; return its digest."""
        assert self.status is not None
        nonce = self.private.get("nonce")
        if nonce is None:
            return None  # Stopped before its job came: nobody would know this for a report, but take it for output.
        header = {
            "exit_code": os.waitstatus_to_exitcode(self.status),
            "stopped_by": self.stopped_by,
            "saved": self.reports.saved is not None,
            "refused": self.reports.refused,
            "error": self.reports.error,
            "setup_error": self.reports.setup_error,
            "peak_memory_bytes": peak_memory_bytes() or self.max_rss_bytes,
            "cpu_seconds": round(self.cpu_seconds, 6),
            "wall_seconds": round(self.ended_at - self.started_at, 6) if self.started_at else 0.0,
            "oom_kills": oom_kills(),
        }
        head = harness_json.dumps(header)
        payload = len(head).to_bytes(4, "big") + head + (self.reports.saved or b"")
        digest = sha256(payload)
        write_all(1, RESULT_MAGIC + nonce.encode() + len(payload).to_bytes(4, "big") + digest + payload)
        return digest


class Reports:
    """Messages from the agent's process: bounded, and never trusted, since agent code can write to the pipe."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.max_bytes = 0
        self.saved: bytes | None = None
        self.refused: str | None = None
        self.error: str | None = None
        self.setup_error: str | None = None
        self._begun = False
        self._buffer = bytearray()
        self._skip = 0

    def read(self) -> bool:
        """Take in what is there; return whether more may come."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        self._buffer += data
        while self._buffer:
            if self._skip:
                cut = min(self._skip, len(self._buffer))
                del self._buffer[:cut]
                self._skip -= cut
                continue
            if len(self._buffer) < 5:
                break
            length = int.from_bytes(self._buffer[1:5], "big")
            if length > self.max_bytes:
                self.saved, self.refused = None, f"the message of {length:,} bytes is over the limit"
                self._skip = length
                del self._buffer[:5]
                continue
            if len(self._buffer) < 5 + length:
                break
            kind, payload = bytes(self._buffer[:1]), bytes(self._buffer[5 : 5 + length])
            del self._buffer[: 5 + length]
            self._take(kind, payload)
        return bool(data)

    def finish(self) -> None:
        """Refuse a message that was never completed, so that a state is not lost without a word."""
        if self._buffer or self._skip:
            self.saved, self.refused = None, self.refused or "the last message to the supervisor is torn"

    def _take(self, kind: bytes, payload: bytes) -> None:
        text = payload[:MAX_ERROR_BYTES].decode(errors="replace")
        if kind == b"S":
            self.saved, self.refused = payload, None
        elif kind == b"R":
            self.saved, self.refused = None, text
        elif kind == b"E":
            self.error = text
        elif kind == b"X" and not self._begun:
            self.setup_error = text
        elif kind == b"B":
            # From here on the messages may be the agent's own, and whether it was set up well is not its to say.
            self._begun = True


def forbid_inspection() -> None:
    """Close /proc/1/mem, /proc/1/fd and ptrace to processes of the same user: prctl(2), PR_SET_DUMPABLE."""
    call_libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    if call_libc("prctl", PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("supervisor: prctl(PR_SET_DUMPABLE) failed")


def open_sigterm() -> int:
    """Return a file that SIGTERM is read from: a handler is not told who sent it, which may be the agent."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signals = (1 << (signal.SIGTERM - 1)).to_bytes(8, sys.byteorder) + bytes(SIGSET_BYTES - 8)
    fd = call_libc("signalfd", -1, signals, SFD_CLOEXEC_NONBLOCK)
    if fd < 0:
        sys.exit("supervisor: signalfd failed")
    return fd


def is_from_outside(sent: bytes) -> bool:
    """Return whether a signalfd_siginfo tells of a sender outside this container, whose process has no number here.

    The kernel fills in who calls kill(2); what rt_sigqueueinfo(2) may say of its caller has another code, below 0.
    """
    code = int.from_bytes(sent[8:12], sys.byteorder, signed=True)
    sender = int.from_bytes(sent[12:16], sys.byteorder)
    return code in (SI_USER, SI_KERNEL) and sender == 0


def call_libc(name: str, *arguments: "int | bytes") -> int:
    """Call a function of the C library; `ctypes` itself would cost each container its import."""
    import _ctypes

    function = _ctypes.dlsym(_ctypes.dlopen(None, os.RTLD_NOW), name)  # type: ignore[arg-type]
    result: int = _ctypes.call_function(function, arguments)
    return result


def sha256(data: bytes) -> bytes:
    """Return the digest; `hashlib` would load OpenSSL for it."""
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:  # before Python 3.12
        from _sha256 import sha256  # type: ignore[import-not-found]
    digest: bytes = sha256(data).digest()
    return digest


def peak_memory_bytes() -> int | None:
    """Return the peak of this container's cgroup: v2 (Linux 5.19 on), else v1."""
    for path in ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes"):
        text = _read(path)
        if text.strip().isdigit():
            return int(text)
    return None


def oom_kills() -> int:
    """Return how many processes of this container the kernel killed for memory: v2, else v1 (Linux 4.13 on)."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        for line in _read(path).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def write_all(fd: int, data: bytes) -> None:
    """Write to a stream that the agent had too, and may have made non-blocking."""
    os.set_blocking(fd, True)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _noop(_signal: int, _frame: "FrameType | None") -> None:
    """Have the signal wake the poll instead of being ignored."""
