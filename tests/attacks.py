"""What hostile clients send in tests and in `./justw abuse` alike, and a look at the memory of the server they send it to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

GIB = 1024**3
MIB = 1024**2
#: A server that has answered a few requests has this much more at its peak for what is not the attack's.
SLACK_BYTES = 24 * MIB

#: In place of an id in a path; none is one.
SEGMENTS = (
    "../1", "..%2f1", "%2e%2e/1", "%2e%2e%2f1", "..%252f1", "1/..", "1%2f..%2f1", ".", "..", "1;x", "1%00", "%00",
    "-1", "0", "+1", "1.0", "1e0", "1e9", "0x1", "%31%20", "1%0d%0aX:y", "null", "NaN", "*", "1,2", "$where", "[$ne]",
    "%7b%22$ne%22:0%7d", "1'%20OR%20'1'='1", "\u0661", "%d9%a1", "%ff", str(2**63), "9" * 19, "9" * 400,
)  # fmt: skip

#: Bodies that would mean something to a database that takes them as they are.
OPERATORS: list[Any] = [
    {"$where": "sleep(1000) || true"},
    {"$ne": None},
    {"$gt": ""},
    {"name": {"$ne": None}, "code": "1"},
    {"name": "x", "code": {"$regex": ".*"}},
    {"agent_id": {"$gt": 0}},
    {"agent_id": 1, "$or": [{}]},
    {"status": {"$in": ["pending"]}},
    {"version": {"$ne": 0}},
    {"state": {"$ne": 1}, "summary": {"$gt": ""}},
    {"__proto__": {}, "name": "x"},
    {"name": "x", "scope": {"$ne": "read"}},
    [{"$where": "1"}],
]


class Memory:
    """The most memory that a process has used since this was made."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        # Sets the peak back to what is used now (proc(5)).
        (self._folder / "clear_refs").write_text("5")
        self.before_bytes = self._read("VmRSS")

    def growth_bytes(self) -> int:
        return self._read("VmHWM") - self.before_bytes

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", (self._folder / "status").read_text())
        assert found
        return int(found[1]) * 1024


async def endless_body(prefix: bytes, count_bytes: int, *, chunked: bool) -> AsyncIterator[bytes]:
    """Yield a body of so many bytes, in pieces."""
    yield prefix
    piece = b"x" * MIB
    for _ in range(count_bytes // MIB):
        yield b"100000\r\n" + piece + b"\r\n" if chunked else piece
