"""What is fuzzed: readers of what strangers write, each with what it is fed and what must hold. None does I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import ValidationError
from tests.unit.test_frames import (
    LOOKALIKE_PARTS,
    MAX_STATE_BYTES,
    NONCE,
    cut,
    end_mark,
    good_frame,
    result_frame,
    result_payload,
    with_length,
)

from harness.api.values import LogQuery
from harness.config import (
    AgentConfig,
    LimitsConfig,
    RetentionConfig,
    RetryConfig,
    ScheduleConfig,
    list_problems,
)
from harness.cron import NAMED_SCHEDULES, parse_cron
from harness.errors import InvalidInputError
from harness.models import AgentDraft, log_attempt
from harness.sandbox.frames import (
    END_MAGIC,
    RESULT_MAGIC,
    RESULT_OVERHEAD_BYTES,
    BadFrameError,
    ResultScanner,
)
from harness.triggers import fires_between, make_trigger, preview
from harness_server.streams import last_event_id


@dataclass(frozen=True, slots=True)
class Target:
    """One reader."""

    #: What it is fed.
    given: st.SearchStrategy[Any]
    #: Feeds it, and raises when something does not hold.
    check: Callable[[Any], None]


_TEXT = st.text(max_size=200)
_NUMBERS = st.one_of(st.integers(), st.integers(-(10**30), 10**30), st.floats(), st.just(10**4200))
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT, inner, max_size=5),
    max_leaves=20,
)

# Frames

_HEADERS = st.dictionaries(
    st.sampled_from(
        ["exit_code", "stopped_by", "saved", "refused", "error", "setup_error", "peak_memory_bytes", "cpu_seconds",
         "wall_seconds", "oom_kills", "state_text", "summary"]
    ),
    _JSON,
)  # fmt: skip
_PAYLOADS = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=100).map(with_length),
    _HEADERS.map(lambda header: with_length(json.dumps(header).encode())),
    st.builds(
        lambda state, summary, rest: (
            result_payload(
                {"exit_code": 0, "peak_memory_bytes": 1, "cpu_seconds": 0.1, "wall_seconds": 0.1},
                state,
                summary,
            )
            + rest
        ),
        st.binary(max_size=2 * MAX_STATE_BYTES),
        st.binary(max_size=100),
        st.binary(max_size=10),
    ),
)
_FRAMES = st.one_of(
    st.just(b""),
    _PAYLOADS.map(result_frame),
    st.binary(max_size=80).map(lambda rest: RESULT_MAGIC + NONCE.encode() + rest),
    st.integers(0, 200).map(lambda length: good_frame()[:length]),
)
_ENDS = st.one_of(
    st.just(b""),
    st.just(end_mark(good_frame())),
    st.binary(max_size=40).map(lambda rest: END_MAGIC + NONCE.encode() + rest),
)
_STREAMS = st.tuples(
    LOOKALIKE_PARTS.map(b"".join), _FRAMES, st.binary(max_size=50), LOOKALIKE_PARTS.map(b"".join), _ENDS,
    st.lists(st.integers(0, 10_000), max_size=12),
)  # fmt: skip


def _check_frames(given: tuple[bytes, bytes, bytes, bytes, bytes, list[int]]) -> None:
    output, frame, rest, errors, end, places = given
    scanner = ResultScanner(NONCE, max_state_bytes=MAX_STATE_BYTES)
    passed = {"stdout": b"", "stderr": b""}
    for chunk in cut(output + frame + rest, places):
        passed["stdout"] += scanner.feed("stdout", chunk)
    for chunk in cut(errors + end, places):
        passed["stderr"] += scanner.feed("stderr", chunk)
    for stream, data in scanner.release():
        passed[stream] += data
    # What passes is what came, from its beginning on.
    assert (output + frame + rest).startswith(passed["stdout"])
    assert (errors + end).startswith(passed["stderr"])
    assert scanner.is_over in (True, False)
    try:
        report = scanner.report()
    except BadFrameError as error:
        assert len(str(error)) < 500
        return
    if report is None:
        assert passed["stdout"] == output + frame + rest
    elif report.state_text is not None:
        assert len(report.state_text) <= MAX_STATE_BYTES + RESULT_OVERHEAD_BYTES


# Where a reader of events goes on

_EVENT_IDS = st.one_of(
    st.integers().map(str),
    st.integers(-2, 2**54).map(str),
    st.text(alphabet="0123456789-+eE. _xXabcdef\u0661\u00b2", max_size=30),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=60),
    st.just("9" * 8000),
)


def _request(text: str) -> web.Request:
    """Return what is looked at of a request; a whole one takes longer to make than to read."""
    return cast("web.Request", SimpleNamespace(headers=CIMultiDict({"Last-Event-ID": text})))


def _check_resume(given: tuple[str, int]) -> None:
    text, after = given
    try:
        found = last_event_id(_request(text), after)
    except InvalidInputError as error:
        assert len(error.message) < 300
        assert text.strip(" \t")
    else:
        assert found == after if not text.strip(" \t") else -1 <= found <= 2**53
        assert log_attempt(max(found, 0)) < 2**22
    for name in LogQuery.model_fields:
        try:
            query = LogQuery.model_validate({name: text})
        except ValidationError as error:
            assert all(len(problem.message) < 1000 for problem in list_problems(error))
        else:
            assert -1 <= query.after <= 2**53


# Cron

_TERMS = st.one_of(
    st.integers(0, 70).map(str),
    st.sampled_from(["*", "*/5", "?", "L", "1-5", "5-1", "0/0", "*/0", "mon", "FRI", "jan", "1,2,", "1#2", "15W", "H", "R", "-", "/", ""]),
    st.builds(lambda low, high, step: f"{low}-{high}/{step}", *[st.integers(0, 70)] * 3),
    st.lists(st.integers(0, 60).map(str), max_size=30).map(",".join),
)  # fmt: skip
_CRONS = st.one_of(
    st.lists(_TERMS, min_size=5, max_size=5).map(" ".join),
    st.lists(_TERMS, max_size=8).map(" ".join),
    st.tuples(
        st.integers(0, 59), st.integers(0, 23), st.integers(1, 31), st.integers(1, 12), st.integers(0, 7)
    ).map(lambda numbers: " ".join(map(str, numbers))),
    st.sampled_from([*NAMED_SCHEDULES, "@reboot", "@every 1s", "@"]),
    st.text(alphabet="0123456789*/-,@?#LWHR \t\n", max_size=60),
    st.text(max_size=600),
)
_ZONES = st.sampled_from(
    ["UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "Asia/Pyongyang"]
)  # fmt: skip
_INSTANTS = st.datetimes(datetime(1971, 1, 1), datetime(2990, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - as hypothesis wants its bounds


def _check_cron(given: tuple[str, str, datetime]) -> None:
    text, zone, after = given
    try:
        parse_cron(text)
    except InvalidInputError as error:
        assert len(error.message) < 1000
        return
    schedule = ScheduleConfig(type="cron", cron=text, timezone=zone)
    trigger = make_trigger(schedule, agent_id=1, anchor=after - timedelta(days=1))
    fires = preview(trigger, after, 3)
    assert fires
    assert fires == sorted({*fires})
    assert fires[0] > after
    last = trigger.latest_at_or_before(fires[-1])
    assert last == fires[-1]
    until = after + timedelta(days=3)
    count = trigger.count_between(after, until)
    assert len(fires_between(trigger, after, until, 5)) == min(5, count)


# Configs

_SECTIONS = (AgentConfig, ScheduleConfig, LimitsConfig, RetryConfig, RetentionConfig)
_WORDS = st.sampled_from(
    [
        "interval",
        "cron",
        "skip",
        "allow",
        "none",
        "open",
        "* * * * *",
        "UTC",
        "2026-01-31T09:00:00Z",
        "API_KEY",
    ]
)


def _section(model: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(
        st.sampled_from([*model.model_fields, "$where", "__class__"]), _JSON | _WORDS, max_size=5
    )


_CONFIGS = st.one_of(
    _section(AgentConfig),
    st.fixed_dictionaries(
        {},
        optional={
            "schedule": _section(ScheduleConfig),
            "limits": _section(LimitsConfig),
            "retry": _section(RetryConfig),
            "retention": _section(RetentionConfig),
            "env": st.dictionaries(_TEXT, _TEXT | _JSON, max_size=3),
            "secrets": st.dictionaries(_TEXT, _TEXT | _JSON, max_size=3),
        },
    ),
)


def _check_config(given: tuple[dict[str, Any], Mapping[str, Any]]) -> None:
    config, fields = given
    try:
        parsed = AgentConfig.parse(config)
    except InvalidInputError as error:
        assert error.problems
        str(error).encode("utf-8", "surrogateescape")
    else:
        assert AgentConfig.parse(config) == parsed
    try:
        AgentDraft.model_validate({"name": "a", "code": "1", "config": config, **fields})
    except ValidationError as error:
        assert list_problems(error)


TARGETS: Mapping[str, Target] = {
    "frames": Target(_STREAMS, _check_frames),
    "resume": Target(st.tuples(_EVENT_IDS, st.integers(-1, 2**53)), _check_resume),
    "cron": Target(st.tuples(_CRONS, _ZONES, _INSTANTS), _check_cron),
    "config": Target(
        st.tuples(_CONFIGS, st.dictionaries(st.sampled_from([*AgentDraft.model_fields]), _JSON, max_size=2)),
        _check_config,
    ),
}
