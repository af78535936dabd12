"""What a case of abuse is: an agent, what it attacks, what is to become of it, and who looks at that. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.models import Reason, Task

#: What an agent of `attempts` prints before what it got, and before why it got nothing.
HARM, REFUSED = "HARM", "refused"


class HarmError(AssertionError):
    """An attack got somewhere."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a hostile agent's run."""

    task: Task
    stdout: str
    stderr: str
    #: The state that the run saved; None: none.
    state: Mapping[str, Any] | None

    def require(self, holds: bool, what: str) -> None:
        """Complain unless something holds."""
        if not holds:
            raise HarmError(f"{what}; task {self.task.status}, {self.task.reason}, {self.task.error}")


#: Returns what was observed, as a few words for the table.
#:
#: Raises:
#:     HarmError: It is not what was expected.
Judge = Callable[[Seen], str]


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile agent."""

    group: str
    attack: str
    expected: str
    code: str
    judge: Judge
    #: Of its config; what is left open has its default.
    limits: Mapping[str, Any] = field(default_factory=dict)
    egress: tuple[str, ...] = ()


#: What expressions of `attempts` may use.
_TOOLS = """
import contextlib, ctypes, errno, glob, os, shutil, socket, stat, subprocess, sys

OWN = ('/proc', '/sys', '/tmp', '/dev/shm', '/dev/mqueue')
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if answer == -1:
        raise OSError(ctypes.get_errno(), 'refused')
    return answer

def libcall(name, *arguments):
    ctypes.set_errno(0)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), 'refused')
    return name

def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as made:
        made.settimeout(2)
        made.connect(address)
    return address

def put(path, text):
    # Unbuffered: what a buffered file could not write is forgotten with it.
    with open(path, 'wb', buffering=0) as file:
        return file.write(text.encode())

def wrote(paths, text):
    written = []
    for path in paths:
        with contextlib.suppress(OSError):
            put(path, text)
            written.append(path)
    return found(written)

def through_relay(data):
    with socket.create_connection(('127.0.0.1', 3128), timeout=15) as made:
        made.sendall(data)
        answer = made.makefile('rb').readline()
    if answer.split(b' ')[1:2] in ([b'400'], [b'403'], [b'411'], [b'431']):
        raise PermissionError(errno.EACCES, answer)
    return answer

def lines(path, word):
    with open(path) as file:
        return [line for line in file if word in line]

def places():
    return [place for place in os.walk('/') if not place[0].startswith(OWN)]

def found(things):
    things = list(things)
    if not things:
        raise LookupError('none')
    return things

def word(error):
    return errno.errorcode.get(getattr(error, 'errno', None), type(error).__name__)

def attempt(expressions, harm, refused):
    for name, expression in expressions.items():
        try:
            got = eval(expression)
        except Exception as error:
            print(refused, name, word(error), sep='\\t')
        else:
            print(harm, name, repr(got)[:200], sep='\\t')
"""


def attempts(what: Mapping[str, str]) -> str:
    """Return an agent's code that evaluates each expression and prints what it got, or why it got nothing."""
    return f"{_TOOLS}\nattempt({dict(what)!r}, {HARM!r}, {REFUSED!r})\n"


def nothing_got(seen: Seen) -> str:
    """Judge an agent of `attempts`: each was refused, and the run went its way."""
    rows = [line.split("\t") for line in seen.stdout.splitlines()]
    harm = [f"{name}: {what}" for verdict, name, what in rows if verdict != REFUSED]
    seen.require(not harm, f"got {harm}")
    seen.require(bool(rows), f"tried nothing: {seen.stderr[-300:]}")
    seen.require(seen.task.reason is Reason.COMPLETED, "the agent did not end by itself")
    words = sorted({what for _, _, what in rows})
    return f"{len(rows)} refused: {', '.join(words)}"


def ends_with(*reasons: Reason) -> Judge:
    """Judge by the reason that a run ended for."""

    def judge(seen: Seen) -> str:
        seen.require(seen.task.reason in reasons, f"it did not end by {[str(one) for one in reasons]}")
        attempt = seen.task.attempts[-1]
        assert attempt.ended_at is not None
        took = (attempt.ended_at - attempt.started_at).total_seconds()
        return f"{seen.task.reason} after {took:.1f} s"

    return judge
