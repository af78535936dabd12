from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.compression import (
    DROPPED_OUTPUTS_KEY,
    RECENT_OUTPUTS_KEY,
    DigestCompressor,
    OutputDigest,
    encode_state,
)
from harness.errors import StateRejectedError

LIMIT = 64 * 1024

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
user_states = st.dictionaries(st.text().filter(lambda key: not key.startswith("_")), values, max_size=4)
#: Line ends, escapes and state lines come up in every run, and not only when a random text happens to hold them.
outputs = st.lists(
    st.text(alphabet=st.characters(), max_size=30)
    | st.sampled_from(
        ["\n", "\r", "\x1b[31m", "\x1b]0;", "HANDOFF_STATE ", 'HANDOFF_STATE {"a": 1}\n', "x" * 2000]
    )
).map("".join)


async def compress(
    raw_output: str, previous_state: dict[str, Any] | None = None, max_bytes: int = LIMIT
) -> dict[str, Any]:
    return await DigestCompressor().compress(
        agent_id=1, raw_output=raw_output, previous_state=previous_state or {}, max_bytes=max_bytes
    )


def size_of(state: dict[str, Any]) -> int:
    return len(json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode())


async def test_a_state_line_becomes_the_state() -> None:
    assert await compress('HANDOFF_STATE {"cursor": 17, "seen": ["a"]}\n') == {"cursor": 17, "seen": ["a"]}


async def test_state_lines_are_merged_in_order_over_the_previous_state() -> None:
    output = 'HANDOFF_STATE {"a": 1, "b": {"x": 1}}\nHANDOFF_STATE {"b": {"y": 2}}\r\n'

    assert await compress(output, {"a": 0, "kept": True}) == {"a": 1, "kept": True, "b": {"y": 2}}


async def test_without_text_besides_there_is_no_digest() -> None:
    assert await compress('\n  \nHANDOFF_STATE {"a": 1}\n\n') == {"a": 1}
    assert await compress("", {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    "line",
    [
        '{"state": {"a": 1}}',
        '{"level": "info", "state": {"a": 1}}',
        ' HANDOFF_STATE {"a": 1}',
        'INFO HANDOFF_STATE {"a": 1}',
        'HANDOFF_STATE: {"a": 1}',
        'HANDOFF_STATE  {"a": 1}',
        'handoff_state {"a": 1}',
        "HANDOFF_STATE is how an agent in any language sets its state",
        "HANDOFF_STATE [1]",
        "HANDOFF_STATE",
        'progress\rHANDOFF_STATE {"a": 1}',
        'one\u2028HANDOFF_STATE {"a": 1}',
    ],
)
async def test_other_lines_are_never_taken_for_state(line: str) -> None:
    state = await compress(line + "\n")

    assert set(state) == {RECENT_OUTPUTS_KEY}


async def test_a_line_separator_inside_a_state_line_belongs_to_its_text() -> None:
    assert await compress('HANDOFF_STATE {"a": "one\u2028two\x85three"}') == {"a": "one\u2028two\x85three"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("HANDOFF_STATE {'a': 1}", "not valid JSON"),
        ('HANDOFF_STATE {"a": 1} trailing', "not valid JSON"),
        ('HANDOFF_STATE {"a": NaN}', "NaN is not JSON"),
        ('HANDOFF_STATE {"a": 1e999}', "inf"),
        ('HANDOFF_STATE {"a": "\\ud800"}', "surrogate"),
        ("HANDOFF_STATE {" + '"a":{' * 100 + "}" * 101, "deeper"),
        ('HANDOFF_STATE {"a": "' + "x" * LIMIT + '"}', "limit of 65,536"),
    ],
)
async def test_a_malformed_state_line_is_rejected_by_its_number(line: str, complaint: str) -> None:
    with pytest.raises(StateRejectedError, match=rf"line 3 of the output: .*{complaint}"):
        await compress(f"one\ntwo\n{line}\nfour\n", {"a": 0})


async def test_a_state_line_at_the_very_end_may_have_been_cut() -> None:
    with pytest.raises(StateRejectedError, match="the output ends in this line, perhaps by its limit"):
        await compress('HANDOFF_STATE {"a": "x')


async def test_what_was_smuggled_into_a_digest_is_rejected() -> None:
    with pytest.raises(StateRejectedError, match=r"state\._recent_outputs\[0\]\.x is a object"):
        await compress("", {RECENT_OUTPUTS_KEY: [{"number": 1, "digest": "", "x": object()}]})


async def test_the_digest_tells_what_an_output_was() -> None:
    output = "first\nsecond\n"

    state = await compress(output, {"a": 1})

    assert state == {
        "a": 1,
        RECENT_OUTPUTS_KEY: [
            {
                "number": 1,
                "digest": "first\nsecond",
                "lines": 2,
                "bytes": 13,
                "sha256": hashlib.sha256(output.encode()).hexdigest(),
            }
        ],
    }


async def test_a_long_output_keeps_whole_first_and_last_lines() -> None:
    output = "\n".join(f"line {number} of the run" for number in range(10_000))

    digest = (await compress(output))[RECENT_OUTPUTS_KEY][0]["digest"]

    assert digest.startswith("line 0 of the run\nline 1 of the run\n")
    assert digest.endswith("\nline 9998 of the run\nline 9999 of the run")
    head, marker, tail = digest.partition("\n[… ")
    assert marker
    assert head.endswith("of the run")
    assert tail.partition("…]\n")[2].startswith("line ")
    assert "characters left out" in tail
    assert len(digest) < 1300


async def test_state_lines_are_not_repeated_in_the_digest() -> None:
    state = await compress('before\nHANDOFF_STATE {"a": 1}\nafter\n')

    assert state["a"] == 1
    assert state[RECENT_OUTPUTS_KEY][0]["digest"] == "before\nafter"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b(Btext\x1b7", "text"),
        ("cut \x1b[3", "cut 3"),
        ("cut \x1b", "cut \ufffd"),
        ("a\0b\x07c\x9bd\x7f", "a\ufffdb\ufffdc\ufffdd\ufffd"),
        ("10%\r20%\r\ndone", "10%\n20%\ndone"),
        ("tab\tkept", "tab\tkept"),
        ("evil\u202etxt.exe", "evil\ufffdtxt.exe"),
        ("half \ud83d", "half \ufffd"),
        ("whole 😀 é", "whole 😀 é"),
    ],
)
async def test_escape_sequences_and_control_characters_are_made_harmless(raw: str, shown: str) -> None:
    assert (await compress(raw))[RECENT_OUTPUTS_KEY][0]["digest"] == shown


async def test_ten_outputs_are_kept_and_the_older_ones_counted() -> None:
    state: dict[str, Any] = {}
    for run in range(1, 26):
        state = await compress(f"run {run}", state)

    assert [entry["number"] for entry in state[RECENT_OUTPUTS_KEY]] == list(range(16, 26))
    assert [entry["digest"] for entry in state[RECENT_OUTPUTS_KEY]][-1] == "run 25"
    assert state[DROPPED_OUTPUTS_KEY] == 15


async def test_500_runs_never_grow_the_state_past_its_bound() -> None:
    state: dict[str, Any] = {"notes": "é" * 20_000}
    output = '"\\\n😀' * 5_000
    sizes = []
    for _ in range(500):
        state = await compress(output, state)
        sizes.append(size_of(state))

    assert max(sizes) <= LIMIT
    assert sizes[-1] - sizes[20] < 50
    assert state["notes"] == "é" * 20_000
    entries = state[RECENT_OUTPUTS_KEY]
    assert entries[-1]["number"] == 500
    assert state[DROPPED_OUTPUTS_KEY] == 500 - len(entries)


async def test_digests_alone_stay_below_the_default_bound_whatever_they_quote() -> None:
    state: dict[str, Any] = {}
    for _ in range(12):
        state = await compress("😀" * 5000, state)

    assert len(state[RECENT_OUTPUTS_KEY]) == 10
    assert size_of(state) < 60_000


async def test_the_oldest_digests_make_room_first() -> None:
    state: dict[str, Any] = {}
    for run in range(1, 6):
        state = await compress(f"run {run} " + "x" * 1000, state)

    squeezed = await compress("HANDOFF_STATE " + json.dumps({"big": "y" * 2000}), state, max_bytes=4500)

    assert squeezed["big"] == "y" * 2000
    assert [entry["number"] for entry in squeezed[RECENT_OUTPUTS_KEY]] == [4, 5]
    assert squeezed[DROPPED_OUTPUTS_KEY] == 3


async def test_numbering_goes_on_after_all_digests_had_to_go() -> None:
    state = await compress("one", await compress("two"))
    squeezed = await compress("HANDOFF_STATE " + json.dumps({"big": "y" * 950}), state, max_bytes=1000)
    assert squeezed == {"big": "y" * 950, DROPPED_OUTPUTS_KEY: 2}

    assert (await compress("three", squeezed))[RECENT_OUTPUTS_KEY][0]["number"] == 3


async def test_an_explicit_state_that_fills_the_bound_is_kept_whole() -> None:
    full = {"a": "x" * (1000 - len('{"a":""}'))}

    assert await compress("text", full, max_bytes=1000) == full


async def test_an_explicit_state_past_the_bound_is_rejected_and_never_cut() -> None:
    with pytest.raises(StateRejectedError, match=r"1,008 bytes.*limit of 1,000 bytes.*max_state_bytes"):
        await compress("text", {"a": "x" * 1000}, max_bytes=1000)


@pytest.mark.parametrize("line", ["", "HANDOFF_STATE " + json.dumps({RECENT_OUTPUTS_KEY: "mine", "a": 1})])
@pytest.mark.parametrize(
    "junk",
    [
        {RECENT_OUTPUTS_KEY: "mine"},
        {RECENT_OUTPUTS_KEY: [1, None, {}, {"number": True, "digest": ""}, {"number": -1, "digest": ""}]},
        {RECENT_OUTPUTS_KEY: [{"number": 10**400, "digest": "x"}], DROPPED_OUTPUTS_KEY: -5},
        {DROPPED_OUTPUTS_KEY: True},
    ],
)
async def test_foreign_values_under_the_reserved_keys_are_left_behind(
    junk: dict[str, Any], line: str
) -> None:
    state = await compress(f"text\n{line}", junk)

    assert [entry["number"] for entry in state[RECENT_OUTPUTS_KEY]] == [1]
    assert DROPPED_OUTPUTS_KEY not in state


async def test_the_previous_state_is_not_changed() -> None:
    previous = {"a": 1, RECENT_OUTPUTS_KEY: [{"number": 1, "digest": "old"}]}
    before = json.dumps(previous)

    await compress('text\nHANDOFF_STATE {"a": 2}', previous)

    assert json.dumps(previous) == before


# A busy machine is no failure.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw_output=outputs, previous_state=user_states, max_bytes=st.integers(min_value=256, max_value=4096))
async def test_any_output_gives_a_bounded_state_that_depends_on_nothing_else(
    raw_output: str, previous_state: dict[str, Any], max_bytes: int
) -> None:
    try:
        state = await compress(raw_output, previous_state, max_bytes)
    except StateRejectedError:
        return
    assert size_of(state) <= max_bytes
    assert encode_state(state, max_bytes=max_bytes)
    assert await compress(raw_output, previous_state, max_bytes) == state
    if 'HANDOFF_STATE {"a": 1}' not in raw_output:
        assert {key: value for key, value in state.items() if not key.startswith("_")} == previous_state


@pytest.mark.parametrize(
    "output",
    [
        pytest.param("x" * 8_000_000, id="one line"),
        pytest.param("\n" * 8_000_000, id="empty lines"),
        pytest.param("HANDOFF_STATE {" * 500_000, id="marks on one line"),
        pytest.param("a HANDOFF_STATE {\n" * 400_000, id="marks inside lines"),
        pytest.param("\x1b]" * 4_000_000, id="unended control strings"),
        pytest.param("line of text\n" * 600_000, id="lines"),
    ],
)
async def test_eight_megabytes_take_a_moment(output: str) -> None:
    # Two orders of magnitude above what it takes, and far below what anything quadratic would.
    started = time.process_time()
    with contextlib.suppress(StateRejectedError):
        await compress(output)
    assert time.process_time() - started < 10


PARTS = st.lists(
    st.sampled_from(
        [
            "HANDOFF_STATE ",
            '{"a": 1}',
            '{"b": [2]}',
            "HANDOFF",
            "\n",
            "\n\n",
            " ",
            "x" * 700,
            "é",
            "\r\n",
            "text",
        ]
    ),
    max_size=14,
)


@given(parts=PARTS, cuts=st.lists(st.integers(1, 900), min_size=1, max_size=6))
def test_an_output_in_pieces_makes_the_same_state_as_in_one(parts: list[str], cuts: list[int]) -> None:
    output, before = "".join(parts), {"kept": True}

    def state(pieces: list[str]) -> dict[str, Any] | str:
        digest = OutputDigest(before, 5000)
        try:
            for piece in pieces:
                digest.feed(piece)
            return digest.finish()
        except StateRejectedError as error:
            return error.message

    pieces, at = [], 0
    for size in itertools.cycle(cuts):
        if at >= len(output):
            break
        pieces.append(output[at : at + size])
        at += size

    assert state(pieces) == state([output])


def test_a_state_line_that_never_ends_is_rejected_before_it_fills_the_memory() -> None:
    digest = OutputDigest({}, 1000)
    digest.feed('HANDOFF_STATE {"a": "')

    digest.feed("x" * 600)

    with pytest.raises(StateRejectedError, match="more than the limit of 1,000 bytes"):
        digest.feed("x" * 600)


def test_half_a_state_line_of_an_output_that_was_cut_counts_for_nothing() -> None:
    digest = OutputDigest({}, 1000)
    digest.feed('HANDOFF_STATE {"a": 1}\nHANDOFF_STATE {"a": ')

    assert digest.finish(is_cut=True) == {"a": 1}
