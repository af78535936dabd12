from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ports import OutputStream
from harness.sandbox.frames import (
    END_MAGIC,
    JOB_MAGIC,
    RESULT_MAGIC,
    BadFrameError,
    Report,
    ResultScanner,
    encode_frame,
)

NONCE = "0123456789abcdef" * 2
OTHER_NONCE = "fedcba9876543210" * 2
MAX_STATE_BYTES = 1024
HEADER: dict[str, Any] = {
    "exit_code": 0,
    "peak_memory_bytes": 1,
    "cpu_seconds": 0.5,
    "wall_seconds": 1.5,
}

STREAMS: tuple[OutputStream, ...] = ("stdout", "stderr")

#: Output that is likely to look like a marker, in full or in part, and has none with our nonce in it.
LOOKALIKE_PARTS = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                b"\0",
                RESULT_MAGIC,
                RESULT_MAGIC[:3],
                RESULT_MAGIC + NONCE[:31].encode(),
                RESULT_MAGIC + OTHER_NONCE.encode(),
                END_MAGIC,
                END_MAGIC + NONCE[:31].encode(),
            ]
        ),
    ),
    max_size=8,
)
LOOKALIKES = LOOKALIKE_PARTS.map(b"".join).filter(lambda output: RESULT_MAGIC + NONCE.encode() not in output)


def with_length(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def result_payload(header: dict[str, Any], state: bytes | None = None, summary: bytes = b"") -> bytes:
    saved = b"" if state is None else with_length(summary) + state
    return with_length(json.dumps(header | {"saved": state is not None}).encode()) + saved


def result_frame(payload: bytes, nonce: str = NONCE) -> bytes:
    digest = hashlib.sha256(payload).digest()
    return RESULT_MAGIC + nonce.encode() + len(payload).to_bytes(4, "big") + digest + payload


def good_frame(state: bytes | None = b'{"n":1}', summary: bytes = b"did it") -> bytes:
    return result_frame(result_payload(HEADER, state, summary))


def end_mark(frame: bytes, nonce: str = NONCE) -> bytes:
    at = len(RESULT_MAGIC) + len(nonce) + 4
    return END_MAGIC + nonce.encode() + frame[at : at + 32]


def scan(chunks: list[bytes], nonce: str = NONCE) -> tuple[bytes, Report | None]:
    """Scan what came on stdout."""
    scanner = ResultScanner(nonce, max_state_bytes=MAX_STATE_BYTES)
    output = [scanner.feed("stdout", chunk) for chunk in chunks]
    output += [data for _, data in scanner.release()]
    return b"".join(output), scanner.report()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(output=LOOKALIKES, places=st.lists(st.integers(0, 10_000), max_size=12))
def test_any_chunking_gives_the_same_output_and_report(output: bytes, places: list[int]) -> None:
    seen, report = scan(cut(output + good_frame(), places))

    assert seen == output
    assert report is not None
    assert report.state_text == b'{"n":1}'
    assert report.summary == "did it"
    assert report.cpu_seconds == 0.5


@given(output=LOOKALIKES, places=st.lists(st.integers(0, 10_000), max_size=12))
def test_output_without_a_frame_comes_back_whole_and_without_a_report(
    output: bytes, places: list[int]
) -> None:
    assert scan(cut(output, places)) == (output, None)


def test_a_marker_may_be_split_anywhere() -> None:
    stream = b"before" + good_frame()
    for place in range(len(stream) + 1):
        output, report = scan([stream[:place], stream[place:]])

        assert output == b"before"
        assert report is not None


def test_a_marker_may_come_byte_by_byte() -> None:
    stream = b"before\0\0AHR" + good_frame()

    output, report = scan([stream[at : at + 1] for at in range(len(stream))])

    assert output == b"before\0\0AHR"
    assert report is not None


def test_a_frame_with_another_nonce_is_output_like_any_other() -> None:
    forged = result_frame(result_payload(HEADER, b'{"forged":true}'), OTHER_NONCE)

    output, report = scan([forged, b"and more", good_frame()])

    assert output == forged + b"and more"
    assert report is not None
    assert report.state_text == b'{"n":1}'


def test_output_is_held_back_only_while_it_may_begin_a_marker() -> None:
    scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)

    for stream in STREAMS:
        assert scanner.feed(stream, b"line\n") == b"line\n"
        assert scanner.feed(stream, b"more\0AH") == b"more"
        assert scanner.feed(stream, b"a!") == b"\0AHa!"
    assert scanner.release() == []
    assert scanner.report() is None


@given(length=st.integers(len(RESULT_MAGIC + NONCE.encode()), len(good_frame()) - 1))
def test_a_torn_frame_is_bad_wherever_it_is_torn(length: int) -> None:
    with pytest.raises(BadFrameError):
        scan([b"output", good_frame()[:length]])


@given(at=st.integers(len(RESULT_MAGIC + NONCE.encode()), len(good_frame()) - 1), flip=st.integers(1, 255))
def test_a_frame_with_any_byte_changed_is_bad(at: int, flip: int) -> None:
    frame = bytearray(good_frame())
    frame[at] ^= flip

    with pytest.raises(BadFrameError):
        scan([bytes(frame)])


@given(extra=st.binary(min_size=1, max_size=50))
def test_bytes_after_the_frame_make_it_bad(extra: bytes) -> None:
    with pytest.raises(BadFrameError):
        scan([good_frame(), extra])


def test_a_frame_sent_twice_is_bad() -> None:
    with pytest.raises(BadFrameError):
        scan([good_frame(), good_frame()])


@given(payload=st.binary(max_size=200))
def test_a_genuine_frame_around_anything_is_a_report_or_bad_and_nothing_else(payload: bytes) -> None:
    try:
        _, report = scan([result_frame(payload)])
    except BadFrameError:
        return
    assert report is not None


@pytest.mark.parametrize(
    "header",
    [
        {},
        HEADER | {"exit_code": 256},
        HEADER | {"exit_code": -129},
        HEADER | {"peak_memory_bytes": -1},
        HEADER | {"cpu_seconds": -0.1},
        HEADER | {"stopped_by": "magic"},
        HEADER | {"wall_seconds": "soon"},
    ],
)
def test_a_header_with_missing_or_impossible_values_is_bad(header: dict[str, Any]) -> None:
    with pytest.raises(BadFrameError, match="header is not valid"):
        scan([result_frame(result_payload(header))])


@pytest.mark.parametrize("head", [b"", b"null", b"[]", b'{"exit_code":', b"\xff\xfe", b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_bad(head: bytes) -> None:
    scanner = ResultScanner(NONCE, max_state_bytes=200_000)
    scanner.feed("stdout", result_frame(with_length(head)))

    with pytest.raises(BadFrameError):
        scanner.report()


@pytest.mark.parametrize("saved", [b"", b"\0", (100).to_bytes(4, "big") + b"too short"])
def test_a_sound_frame_around_a_malformed_save_is_a_refused_state(saved: bytes) -> None:
    head = with_length(json.dumps(HEADER | {"saved": True}).encode())

    _, report = scan([result_frame(head + saved)])

    assert report is not None
    assert report.refused is not None
    assert report.state_text is None


def test_a_frame_that_announces_more_than_the_bound_is_bad_and_is_not_kept_in_memory() -> None:
    scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
    scanner.feed("stdout", RESULT_MAGIC + NONCE.encode() + (1 << 31).to_bytes(4, "big"))
    for _ in range(1000):
        assert scanner.feed("stdout", b"x" * 65536) == b""

    assert scanner._frame.found is not None
    assert len(scanner._frame.found) < 200_000
    with pytest.raises(BadFrameError, match="announces 2,147,483,648 bytes"):
        scanner.report()


def test_the_longest_payload_allowed_is_read_whole() -> None:
    bound = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)._max_bytes
    empty = len(result_payload(HEADER, b""))

    for surplus, fits in ((0, True), (1, False)):
        frame = result_frame(result_payload(HEADER, b"x" * (bound - empty + surplus)))
        if fits:
            _, report = scan([frame[:100], frame[100:]])
            assert report is not None
            assert report.state_text is not None
        else:
            with pytest.raises(BadFrameError, match="announces"):
                scan([frame])


def test_a_summary_that_is_no_utf8_is_repaired() -> None:
    _, report = scan([good_frame(summary=b"\xff ok")])

    assert report is not None
    assert report.summary == "\ufffd ok"


def test_a_job_frame_says_its_kind_and_length() -> None:
    assert encode_frame(b"S") == JOB_MAGIC + b"S\0\0\0\0"
    assert encode_frame(b"J", {"a": "é"}) == JOB_MAGIC + b"J\0\0\0\x0f" + b'{"a": "\\u00e9"}'


def test_nan_is_never_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_frame(b"J", {"context": float("nan")})


def test_scanning_takes_time_in_proportion_to_the_output() -> None:
    # The worst a flood can do: every byte could begin a marker. Quadratic work would take 16 times as long, not 4.
    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(5):
            scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
            began = perf_counter()
            for _ in range(count):
                scanner.feed("stdout", zeros)
            best = min(best, perf_counter() - began)
        return best

    zeros = b"\0" * 65536

    assert seconds(2000) < seconds(500) * 10


# The end mark


@given(
    outputs=st.tuples(LOOKALIKES, LOOKALIKES.filter(lambda output: END_MAGIC + NONCE.encode() not in output)),
    order=st.lists(st.booleans(), max_size=400),
    size=st.integers(1, 40),
)
def test_it_is_over_with_the_last_byte_of_frame_and_mark_however_the_streams_interleave(
    outputs: tuple[bytes, bytes], order: list[bool], size: int
) -> None:
    frame = good_frame()
    left = [outputs[0] + frame, outputs[1] + end_mark(frame)]
    seen = [b"", b""]
    scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
    for which in [*map(int, order), *([0, 1] * 2000)]:
        if left[which]:
            assert not scanner.is_over
            seen[which] += scanner.feed(STREAMS[which], left[which][:size])
            left[which] = left[which][size:]

    assert scanner.is_over
    assert scanner.release() == []
    assert tuple(seen) == outputs
    report = scanner.report()
    assert report is not None
    assert report.state_text == b'{"n":1}'


def is_over(stdout: bytes, stderr: bytes) -> bool:
    scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
    scanner.feed("stdout", stdout)
    scanner.feed("stderr", stderr)
    return scanner.is_over


@pytest.mark.parametrize("stream", STREAMS)
def test_without_the_whole_mark_and_the_whole_frame_it_is_not_over(stream: OutputStream) -> None:
    frame = good_frame()
    whole = {"stdout": frame, "stderr": end_mark(frame)}
    for length in range(len(whole[stream])):
        cut_off = whole | {stream: whole[stream][:length]}
        assert not is_over(**cut_off)
    assert is_over(**whole)


def test_an_agent_that_does_not_know_the_nonce_ends_nothing() -> None:
    forged = result_frame(result_payload(HEADER, b'{"forged":true}'), OTHER_NONCE)

    assert not is_over(forged, end_mark(forged, OTHER_NONCE))
    assert not is_over(good_frame(), end_mark(forged, OTHER_NONCE))
    # Each has its own stream.
    assert not is_over(end_mark(good_frame()), good_frame())


def test_a_report_without_a_mark_counts_when_the_streams_have_ended() -> None:
    for mark in (b"", end_mark(good_frame())[:-1]):
        scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
        scanner.feed("stdout", good_frame())
        scanner.feed("stderr", mark)

        assert not scanner.is_over
        assert scanner.report() is not None


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        pytest.param(good_frame() + b"x", end_mark(good_frame()), id="more on stdout"),
        pytest.param(good_frame(), end_mark(good_frame()) + b"x", id="more on stderr"),
        pytest.param(good_frame(), end_mark(good_frame(b'{"n":2}')), id="the mark of another frame"),
        pytest.param(good_frame(b'{"n":2}') + good_frame(), end_mark(good_frame()), id="two frames"),
        pytest.param(good_frame()[:-1] + b"?", end_mark(good_frame()), id="a damaged frame"),
        pytest.param(
            RESULT_MAGIC + NONCE.encode() + b"\xff" * 100, end_mark(good_frame()), id="a frame without end"
        ),
    ],
)
def test_what_is_wrong_with_frame_or_mark_is_bad_and_not_waited_for(stdout: bytes, stderr: bytes) -> None:
    scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
    scanner.feed("stdout", stdout)
    scanner.feed("stderr", stderr)

    assert scanner.is_over
    with pytest.raises(BadFrameError):
        scanner.report()
