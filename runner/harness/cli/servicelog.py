"""The log of a program that runs for months: one line an event on standard error, as text or as JSON.

Written from a thread of its own: a terminal that was stopped, or a pipe that nobody reads, must not stall the event loop,
where leases are kept alive. What then finds no room is counted and dropped, and the log says so when it can.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from harness.cli.text import neutralize_json, one_line

#: Records that wait for a reader at most.
MAX_WAITING = 10_000
#: Wait at the end for the last records to be written, in seconds.
FLUSH_TIMEOUT_SECONDS = 2.0

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


class TextFormatter(logging.Formatter):
    """``2026-01-31T09:00:00.123Z INFO task 7 ended: completed action=run_ended task_id=7``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = _fields(record)
        head = f"{fields.pop('time')} {fields.pop('level').upper():<7} {one_line(fields.pop('message'))}"
        return " ".join([head, *(f"{name}={_value_text(value)}" for name, value in fields.items())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``message``, ``action`` and what the event is about."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return neutralize_json(json.dumps(_fields(record), ensure_ascii=False, default=str))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {
        "time": at.removesuffix("+00:00") + "Z",
        "level": record.levelname.lower(),
        "message": record.getMessage(),
    }
    fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if "action" not in fields:
        fields["logger"] = record.name
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _value_text(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(character in text for character in ' "='):
        return text
    return neutralize_json(json.dumps(text, ensure_ascii=False))


class _ThreadedHandler(logging.Handler):
    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        # A daemon, so that a reader who never reads can't keep the process from leaving.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def finish(self) -> None:
        try:
            self._waiting.put(None, timeout=FLUSH_TIMEOUT_SECONDS)
        except queue.Full:
            return
        self._thread.join(FLUSH_TIMEOUT_SECONDS)

    def _write_all(self) -> None:
        while (line := self._waiting.get()) is not None:
            self._write(line)
            if dropped := self._dropped:
                self._dropped -= dropped
                record = logging.makeLogRecord(
                    {
                        "name": __name__,
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": f"{dropped} lines of this log were dropped, since nobody read it",
                        "action": "log_dropped",
                    }
                )
                self._write(self.format(record))

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A reader that has gone away, or a full disk, is no reason to end.
            self._dropped += 1


@contextmanager
def service_log(log_format: LogFormat, stream: TextIO | None = None) -> Iterator[None]:
    """Log within the block: the product's events, and what others warn of.

    Args:
        log_format: How a line looks.
        stream: Where the lines go. None: standard error.
    """
    handler = _ThreadedHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    own = [logging.getLogger(name) for name in ("harness", "harness_server")]
    before = [(log, log.level, log.handlers[:]) for log in (root, *own)]
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for log in own:
        log.handlers.clear()
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for log, level, handlers in before:
            log.setLevel(level)
            log.handlers[:] = handlers
        handler.finish()
