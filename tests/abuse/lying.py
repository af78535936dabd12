"""Cases that lie: to the supervisor, about their results, and with what they hand over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.abuse.case import Case, Judge, Seen

from harness.models import Reason

_GROUP = "lying"
_SAVE = "import handoff\n"


def _case(attack: str, expected: str, code: str, judge: Judge, **limits: float) -> Case:
    return Case(_GROUP, attack, expected, code, judge, limits={"timeout_seconds": 10} | limits)


def _fails(reason: Reason) -> Judge:
    def judge(seen: Seen) -> str:
        seen.require(seen.task.reason is reason, f"it did not end as {reason}")
        seen.require(seen.state is None, f"its state is {seen.state}")
        return f"{reason}; nothing saved"

    return judge


def _only_output(text: str) -> Judge:
    """The lie is output like any other, and the exit code decides."""

    def judge(seen: Seen) -> str:
        seen.require(seen.task.reason is Reason.EXIT_NONZERO, "it was believed")
        seen.require(text in seen.stdout + seen.stderr, "its output is not whole")
        seen.require(seen.state is None, f"its state is {seen.state}")
        return f"{seen.task.reason}; the lie is in the log, as output"

    return judge


def _saved(state: Mapping[str, Any]) -> Judge:
    def judge(seen: Seen) -> str:
        seen.require(seen.task.reason is Reason.COMPLETED, "it did not complete")
        seen.require(seen.state == state, f"its state is {str(seen.state)[:200]}")
        return "kept exactly as it is"

    return judge


def _refused_or_kept(seen: Seen) -> str:
    """Either the state is refused by a reason of its own, or it is there."""
    seen.require(
        seen.task.reason in (Reason.STATE_REJECTED, Reason.COMPLETED, Reason.EXIT_NONZERO),
        "it broke something",
    )
    seen.require(
        (seen.state is not None) is (seen.task.reason is Reason.COMPLETED), f"its state is {seen.state}"
    )
    return f"{seen.task.reason}: {(seen.task.error or 'kept')[:80]}"


def _nothing_saved(seen: Seen) -> str:
    seen.require(seen.task.reason is not Reason.COMPLETED, "it was believed")
    seen.require(seen.state is None, f"its state is {seen.state}")
    return f"{seen.task.reason}; nothing saved"


_TRICKY: dict[str, Any] = {
    "$where": "1",
    "a.b": {"$set": 1},
    "": None,
    "__proto__": [],
    "\u202e": "\u0000\u001b[2J",
    "n": 2**70,
}

CASES = (
    _case(
        "print a result frame with a guessed nonce, and fail",
        "the frame is output, the exit code decides",
        """
import os, sys
for stream in (1, 2):
    os.write(stream, b'\\0AHR1' + b'0' * 32 + b'{"kind":"result","exit_code":0,"state":{"owned":1}}\\n')
os.write(1, b'lie told\\n')
sys.exit(3)
""",
        _only_output("lie told"),
    ),
    _case(
        "print an end mark with a guessed nonce, and go on",
        "the mark is output, the run goes on",
        """
import os, sys, time
os.write(2, b'\\0AHE1' + b'0' * 64)
time.sleep(0.5)
print('lie told')
sys.exit(3)
""",
        _only_output("lie told"),
    ),
    _case(
        "print the first half of a frame, then ten megabytes",
        "output, bounded as any other",
        """
import os, sys
os.write(1, b'\\0AHR1')
for _ in range(1000):
    os.write(1, b'x' * 10_000)
sys.exit(3)
""",
        _only_output("xxx"),
    ),
    _case(
        "write garbage into the pipe to the supervisor",
        "state_rejected or the exit code, nothing saved",
        """
import os, sys
for number in range(3, 20):
    try:
        os.write(number, b'S' + (5).to_bytes(4, 'big') + b'{{{{{' + b'?' * 5000)
    except OSError:
        pass
sys.exit(3)
""",
        _nothing_saved,
    ),
    _case(
        "announce a state of four gigabytes",
        "nothing saved, no memory taken for it",
        """
import os, sys
for number in range(3, 20):
    try:
        os.write(number, b'S' + (2**32 - 1).to_bytes(4, 'big') + b'x' * 5000)
    except OSError:
        pass
sys.exit(3)
""",
        _nothing_saved,
    ),
    _case(
        "save a state, then fail",
        "nothing saved: only a run that ends well hands over",
        _SAVE
        + """
import sys
handoff.save({'early': 1})
sys.exit(3)
""",
        _fails(Reason.EXIT_NONZERO),
    ),
    _case(
        "save a state while being stopped for its time",
        "timeout, nothing saved",
        _SAVE
        + """
import signal, sys, time
def late(number, frame):
    handoff.save({'late': 1})
    sys.exit(0)
signal.signal(signal.SIGTERM, late)
time.sleep(60)
""",
        _fails(Reason.TIMEOUT),
        timeout_seconds=1,
    ),
    _case(
        "operators, dots, empty and reversed names, control characters, a huge integer in the state",
        "kept exactly",
        _SAVE + f"handoff.save({_TRICKY!r})\n",
        _saved(_TRICKY),
    ),
    _case(
        "a state nested ten thousand deep",
        "refused by name, or kept",
        _SAVE
        + """
import sys
sys.setrecursionlimit(100_000)
state = {}
for _ in range(10_000):
    state = {'a': state}
handoff.save(state)
""",
        _refused_or_kept,
    ),
    _case(
        "NaN in the state",
        "state_rejected",
        _SAVE
        + """
try:
    handoff.save({'n': float('nan')})
except ValueError:
    pass
""",
        _fails(Reason.STATE_REJECTED),
    ),
    _case(
        "half a character (a lone surrogate) in the state",
        "refused by name, or kept",
        _SAVE + "handoff.save({'s': '\\ud800'})\n",
        _refused_or_kept,
    ),
    _case(
        "an integer of twenty thousand digits in the state",
        "refused by name, or kept",
        _SAVE
        + """
import sys
sys.set_int_max_str_digits(0)
handoff.save({'n': 10 ** 20_000})
""",
        _refused_or_kept,
    ),
    _case(
        "a name twice in one object, past the library",
        "nothing of it is trusted: one value, or refused",
        """
import os
body = b'{"state":{"a":1,"a":2},"summary":""}'
import handoff
os.write(handoff._pipe, b'S' + len(body).to_bytes(4, 'big') + body)
""",
        _refused_or_kept,
    ),
)
