from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

SOURCES = Path(__file__).parents[2] / "sandbox-images" / "python"

if TYPE_CHECKING:
    import harness_json
    import supervisor
else:
    sys.path.insert(0, str(SOURCES))
    import harness_json
    import supervisor

    sys.path.remove(str(SOURCES))

MAX_BYTES = 1000

KINDS = st.sampled_from([b"S", b"R", b"E", b"X", b"B", b"?", b"\0"])
MESSAGES = st.lists(st.tuples(KINDS, st.binary(max_size=60)), max_size=8)


def message(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "big") + payload


class Pipe:
    """The pipe between the agent's process and the supervisor, with the supervisor's reader on it."""

    def __init__(self) -> None:
        read_fd, self.write_fd = os.pipe()
        self.reports = supervisor.Reports(read_fd)
        self.reports.max_bytes = MAX_BYTES

    def send(self, data: bytes) -> None:
        """Write, and have it read, a pipe's worth at a time."""
        for start in range(0, len(data), 60_000):
            os.write(self.write_fd, data[start : start + 60_000])
            while self.reports.read():
                pass

    def end(self) -> supervisor.Reports:
        os.close(self.write_fd)
        self.write_fd = -1
        while self.reports.read():
            pass
        self.reports.finish()
        return self.reports

    def close(self) -> None:
        os.close(self.reports.fd)
        if self.write_fd >= 0:
            os.close(self.write_fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def imported_by(module: str) -> set[str]:
    """What an interpreter that starts as one in a sandbox does imports for a module, itself included."""
    code = (
        f"import sys, os; before = set(sys.modules); sys.path.insert(0, {str(SOURCES)!r}); import {module}; "
        "print(*set(sys.modules) - before)"
    )
    # Without `site`, which in a virtual environment may import anything.
    command = [sys.executable, "-I", "-S", "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_supervisor_imports_next_to_nothing() -> None:
    # Each container pays for every import, before its first job.
    assert imported_by("supervisor") <= {"supervisor", "harness_json", "select", "_json"}


def test_an_agent_gets_json_and_nothing_else_that_it_did_not_ask_for() -> None:
    slow = {"asyncio", "ctypes", "hashlib", "pathlib", "signal", "threading", "traceback", "typing"}

    assert "json" in imported_by("harness_child")
    assert not slow & imported_by("harness_child")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(document=st.dictionaries(st.text(), SCALARS))
def test_a_header_is_the_json_that_everybody_else_reads(document: dict[str, Any]) -> None:
    encoded = harness_json.dumps(document)

    assert json.loads(encoded) == document
    assert harness_json.loads(encoded) == document


@given(document=st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_everybody_else_writes_is_read(document: object) -> None:
    assert harness_json.loads(json.dumps(document).encode()) == document


@pytest.mark.parametrize("text", [b"", b" ", b"{", b"{}x", b"[1,]", b'{"a":}', b"\xff"])
def test_what_is_no_json_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of its kinds is the interpreter's own matter
        harness_json.loads(text)


def test_the_last_save_wins(pipe: Pipe) -> None:
    pipe.send(message(b"S", b"one") + message(b"S", b"two"))

    assert pipe.end().saved == b"two"


def test_a_refusal_takes_an_earlier_save_back_and_a_later_save_takes_back_the_refusal(pipe: Pipe) -> None:
    pipe.send(message(b"S", b"one") + message(b"R", b"too large"))
    assert (pipe.reports.saved, pipe.reports.refused) == (None, "too large")

    pipe.send(message(b"S", b"two"))
    reports = pipe.end()

    assert (reports.saved, reports.refused) == (b"two", None)


def test_a_message_over_the_limit_is_skipped_refused_and_never_kept(pipe: Pipe) -> None:
    pipe.send(message(b"S", b"one") + message(b"S", b"x" * 3_000_000) + message(b"E", b"later"))
    reports = pipe.end()

    assert reports.saved is None
    assert reports.refused == "the message of 3,000,000 bytes is over the limit"
    assert reports.error == "later"
    assert len(reports._buffer) == 0


@pytest.mark.parametrize("length", range(1, len(message(b"S", b"two"))))
def test_a_torn_message_is_refused_wherever_it_is_torn(pipe: Pipe, length: int) -> None:
    pipe.send(message(b"S", b"one") + message(b"S", b"two")[:length])
    reports = pipe.end()

    assert reports.saved is None
    assert reports.refused == "the last message to the supervisor is torn"


def test_only_what_comes_before_the_agents_code_can_say_that_the_setup_failed(pipe: Pipe) -> None:
    pipe.send(message(b"X", b"no space"))
    assert pipe.reports.setup_error == "no space"

    other = Pipe()
    other.send(message(b"B", b"") + message(b"X", b"forged"))
    assert other.end().setup_error is None
    other.close()


def test_texts_are_cut_and_repaired(pipe: Pipe) -> None:
    pipe.send(message(b"E", b"\xff" * MAX_BYTES))
    pipe.reports.max_bytes = 10 * supervisor.MAX_ERROR_BYTES
    pipe.send(message(b"R", b"x" * 3 * supervisor.MAX_ERROR_BYTES))
    reports = pipe.end()

    assert reports.error == "\ufffd" * MAX_BYTES
    assert reports.refused == "x" * supervisor.MAX_ERROR_BYTES


def test_an_empty_pipe_says_that_nothing_more_is_there_now(pipe: Pipe) -> None:
    assert pipe.reports.read() is False


@given(messages=MESSAGES, places=st.lists(st.integers(0, 600), max_size=8))
def test_any_chunking_of_the_pipe_gives_the_same_reports(
    messages: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    data = b"".join(message(kind, payload) for kind, payload in messages)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    whole, pieces = Pipe(), Pipe()
    whole.send(data)
    for start, end in pairwise(edges):
        if end > start:
            pieces.send(data[start:end])

    first, second = whole.end(), pieces.end()
    try:
        for name in ("saved", "refused", "error", "setup_error"):
            assert getattr(first, name) == getattr(second, name)
        saves = [(kind, payload) for kind, payload in messages if kind in (b"S", b"R")]
        last = saves[-1] if saves else (b"", b"")
        assert first.saved == (last[1] if last[0] == b"S" else None)
    finally:
        whole.close()
        pieces.close()


@given(garbage=st.lists(st.binary(min_size=1, max_size=300), max_size=10))
def test_garbage_never_raises_and_never_fills_the_memory(garbage: list[bytes]) -> None:
    pipe = Pipe()
    try:
        for data in garbage:
            pipe.send(data)
            assert len(pipe.reports._buffer) <= MAX_BYTES + 5
        reports = pipe.end()
        assert reports.saved is None or len(reports.saved) <= MAX_BYTES
    finally:
        pipe.close()
