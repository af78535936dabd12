from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from harness.cli import servicelog
from harness.cli.servicelog import LogFormat, service_log

logger = logging.getLogger("harness.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()
    assert logging.getLogger("harness").level == logging.NOTSET


def log_one(log_format: LogFormat, stream: io.StringIO, message: str, **extra: Any) -> str:
    with service_log(log_format, stream):
        logger.info("%s", message, extra=extra)
    (line,) = stream.getvalue().splitlines()
    return line


def test_an_event_is_one_line_with_its_action_first(stream: io.StringIO) -> None:
    line = log_one(
        LogFormat.TEXT, stream, "task 7 ended", action="run_ended", task_id=7, note='a "b" c', empty=""
    )
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'INFO    task 7 ended action=run_ended task_id=7 note="a \\"b\\" c" empty=""'


def test_an_event_as_json_has_the_same_fields(stream: io.StringIO) -> None:
    event = json.loads(log_one(LogFormat.JSON, stream, "task 7 ended", action="run_ended", task_id=7))
    assert event.pop("time").endswith("Z")
    assert event == {"level": "info", "message": "task 7 ended", "action": "run_ended", "task_id": 7}


@pytest.mark.parametrize("log_format", LogFormat)
def test_nothing_in_an_event_breaks_its_line_or_drives_a_terminal(
    stream: io.StringIO, log_format: LogFormat
) -> None:
    line = log_one(log_format, stream, "a\nb\x1b[2J\x9b2J", action="x", name_of="c\nd\x1b[31m\u202e")
    assert not any(character in line for character in "\x1b\x9b\u202e")


@pytest.mark.parametrize("log_format", LogFormat)
def test_an_exception_stays_on_the_line(stream: io.StringIO, log_format: LogFormat) -> None:
    with service_log(log_format, stream):
        try:
            raise RuntimeError("a bug")
        except RuntimeError:
            logger.exception("it failed", extra={"action": "x"})
    (line,) = stream.getvalue().splitlines()
    assert "RuntimeError: a bug" in line


def test_others_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    with service_log(LogFormat.JSON, stream):
        logging.getLogger("somebody").info("chatter")
        logging.getLogger("somebody").warning("trouble")
        logging.getLogger("harness_server.app").info("ours")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["message"], event["logger"]) for event in events] == [
        ("trouble", "somebody"),
        ("ours", "harness_server.app"),
    ]


def test_a_log_that_nobody_reads_stalls_nothing_and_says_what_was_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servicelog, "MAX_WAITING", 10)
    monkeypatch.setattr(servicelog, "FLUSH_TIMEOUT_SECONDS", 10.0)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        with service_log(LogFormat.JSON, stream):
            for number in range(200):
                # Two of these fill a pipe.
                logger.info("%s", "x" * 40_000, extra={"action": "many", "number": number})
            events = [json.loads(reader.readline()) for _ in range(13)]
            logger.info("again", extra={"action": "again"})
        stream.close()
        events += map(json.loads, reader)
    dropped = [event for event in events if event["action"] == "log_dropped"]
    written = [event for event in events if event["action"] == "many"]
    assert sum(int(event["message"].split()[0]) for event in dropped) == 200 - len(written)
    assert events[-1]["action"] == "again"


def test_a_reader_that_has_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    with service_log(LogFormat.TEXT, stream):
        logger.info("nobody hears this")
    with pytest.raises(BrokenPipeError):
        stream.close()
