r"""The wire format between runner and supervisor. Bytes in, bytes out; no I/O.

stdin, runner to supervisor: frames of ``AHJ1``, a kind, a 4-byte big-endian length and a payload:

* ``P``: JSON for the supervisor alone: nonce, timeout_seconds, grace_seconds, state_bytes
* ``J``: JSON for the agent's process: files, entrypoint, context, task, env, state_bytes. Passed on unread.
* ``S``: stop now (SIGTERM, after the grace SIGKILL). Closing stdin means the runner is gone: all ends at once.

stdout, supervisor to runner: whatever the agent wrote, then once, as the very last bytes, a result frame:
``\0AHR1``, the nonce (32 hex digits), a 4-byte length, the SHA-256 of the payload, the payload. The payload is a 4-byte
length, that much JSON (see `Report`), and then what the agent saved: a 4-byte length, that much summary, JSON state.
The agent never sees the nonce, so a frame it forges is output like any other; a torn one fails its length or digest.

stderr, supervisor to runner: whatever the agent wrote, then once, as the very last bytes, an end mark: ``\0AHE1``, the
nonce, the SHA-256 out of the result frame. It follows the frame, and is left out unless all other processes of the
container are dead. The engine copies the two streams apart from each other, so only frame and mark together say that
all output has come; then the runner need not wait until the container has ended. The supervisor stays until its stdin
is closed, or for some seconds at most.

The other end is ``sandbox-images/python/supervisor.py``; change both together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.ports import OutputStream

JOB_MAGIC = b"AHJ1"
RESULT_MAGIC = b"\x00AHR1"
END_MAGIC = b"\x00AHE1"
#: Exit code of a supervisor whose stdin was closed on it.
EXIT_RUNNER_GONE = 113
#: Beyond the state itself: header, summary, lengths.
RESULT_OVERHEAD_BYTES = 64 * 1024

_DIGEST_BYTES = 32


class BadFrameError(ValueError):
    """The result frame is torn or does not hold what it should."""


class Report(BaseModel):
    """The supervisor's account of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: As `os.waitstatus_to_exitcode`: negative after a signal.
    exit_code: Annotated[int, Field(ge=-128, le=255)]
    #: ``runner``: by a stop frame; ``signal``: PID 1 got SIGTERM from outside; ``backstop``: the runner kept silent.
    stopped_by: Literal["runner", "signal", "backstop"] | None = None
    saved: bool = False
    #: Why the last `handoff.save` was refused inside the sandbox.
    refused: str | None = None
    #: Last line of the agent's traceback.
    error: str | None = None
    #: Why the agent could not even be started.
    setup_error: str | None = None
    peak_memory_bytes: Annotated[int, Field(ge=0)]
    cpu_seconds: Annotated[float, Field(ge=0)]
    wall_seconds: Annotated[float, Field(ge=0)]
    oom_kills: Annotated[int, Field(ge=0)] = 0
    #: UTF-8 JSON as the agent wrote it, unchecked.
    state_text: bytes | None = Field(default=None, exclude=True)
    summary: str = ""


def encode_frame(kind: bytes, document: Mapping[str, Any] | None = None) -> bytes:
    """Encode one frame for the supervisor."""
    payload = b"" if document is None else json.dumps(document, allow_nan=False).encode()
    return JOB_MAGIC + kind + len(payload).to_bytes(4, "big") + payload


class ResultScanner:
    """Tells the agent's own output from what the supervisor adds to it, in chunks of stdout and stderr."""

    def __init__(self, nonce: str, *, max_state_bytes: int) -> None:
        """Look for what bears this nonce.

        Args:
            nonce: The run's nonce, as sent in the ``P`` frame.
            max_state_bytes: Bound on the saved state; a longer frame is a bad frame.
        """
        self._max_bytes = max_state_bytes + RESULT_OVERHEAD_BYTES
        self._frame = _Tail(RESULT_MAGIC + nonce.encode(), 4 + _DIGEST_BYTES + self._max_bytes)
        self._end = _Tail(END_MAGIC + nonce.encode(), _DIGEST_BYTES)

    def feed(self, stream: OutputStream, data: bytes) -> bytes:
        """Take a chunk; return what of it, and of what was held back, is certainly the agent's output."""
        return (self._frame if stream == "stdout" else self._end).feed(data)

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come: the end mark is there, and the frame is whole, or so long that it is bad."""
        frame = self._frame.found
        if frame is None or self._end.found is None or len(self._end.found) < _DIGEST_BYTES:
            return False
        announced = int.from_bytes(frame[:4], "big")
        return len(frame) >= 4 and (
            announced > self._max_bytes or len(frame) >= 4 + _DIGEST_BYTES + announced
        )

    def release(self) -> Sequence[tuple[OutputStream, bytes]]:
        """Return, at the end of the streams, what of the agent's output was held back."""
        held: tuple[tuple[OutputStream, bytes], ...] = (
            ("stdout", self._frame.release()),
            ("stderr", self._end.release()),
        )
        return [(stream, data) for stream, data in held if data]

    def report(self) -> Report | None:
        """Return the report at the end of the streams; None without a frame.

        Raises:
            BadFrameError: A frame began and is torn, damaged, too long or malformed, or the end mark is not its own.
        """
        if self._frame.found is None:
            return None
        report = _parse(bytes(self._frame.found), self._max_bytes)
        end = self._end.found
        if end is not None and len(end) >= _DIGEST_BYTES and end != self._frame.found[4 : 4 + _DIGEST_BYTES]:
            raise BadFrameError("the result frame is not the one that the end mark is for")
        return report


class _Tail:
    """Passes a stream on up to a mark and keeps what follows it, as far as a bound and one byte past it."""

    def __init__(self, mark: bytes, max_bytes: int) -> None:
        self._mark = mark
        #: One byte past the bound is enough to know that it is too long.
        self._most = max_bytes + 1
        self._held = b""
        #: What came after the mark; None: it has not come yet.
        self.found: bytearray | None = None

    def feed(self, data: bytes) -> bytes:
        if self.found is not None:
            self.found += data[: max(0, self._most - len(self.found))]
            return b""
        data = self._held + data
        at = data.find(self._mark)
        if at >= 0:
            self._held = b""
            start = at + len(self._mark)
            self.found = bytearray(data[start : start + self._most])
            return data[:at]
        keep = _overlap(data, self._mark)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def release(self) -> bytes:
        held, self._held = self._held, b""
        return held


def _overlap(data: bytes, mark: bytes) -> int:
    """Return the length of the longest end of `data` that `mark` starts with."""
    start = data.rfind(mark[:1], max(0, len(data) - len(mark) + 1))
    # The mark's first byte occurs in it once, so only the last occurrence can begin a mark.
    if start < 0 or not mark.startswith(data[start:]):
        return 0
    return len(data) - start


def _parse(frame: bytes, max_bytes: int) -> Report:
    length = int.from_bytes(frame[:4], "big")
    if len(frame) < 4 or length > max_bytes:
        raise BadFrameError(f"the result frame announces {length:,} bytes, the limit is {max_bytes:,}")
    digest, payload = frame[4 : 4 + _DIGEST_BYTES], frame[4 + _DIGEST_BYTES :]
    if len(payload) != length:
        raise BadFrameError(f"the result frame is torn: {len(payload):,} of {length:,} bytes")
    if hashlib.sha256(payload).digest() != digest:
        raise BadFrameError("the result frame's checksum does not match")
    head_end = 4 + int.from_bytes(payload[:4], "big")
    try:
        report = Report.model_validate_json(payload[4:head_end])
    except ValidationError as error:
        raise BadFrameError(
            f"the result frame's header is not valid: {error.error_count()} problems"
        ) from error
    if not report.saved:
        return report
    saved = payload[head_end:]
    summary_end = 4 + int.from_bytes(saved[:4], "big")
    if len(saved) < summary_end:
        # The frame is sound: it was the agent that wrote this into its pipe to the supervisor.
        return report.model_copy(update={"refused": "it is shorter than its summary"})
    summary = saved[4:summary_end].decode(errors="replace")
    return report.model_copy(update={"state_text": saved[summary_end:], "summary": summary})
