"""Clients that try to write lines of their own into heads of answers and into the log."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable

from tests.abuse.clients.target import ClientCase, Target, count_answers, counted, require, status_of

from harness.tokens import ScopeName

_GROUP = "clients: injection"

#: What must appear nowhere as it is: ends of lines, NUL, escape sequences in both forms, marks that turn text around.
CONTROLS = (
    "\r\nX-Injected: 1",
    "\nX-Injected: 1",
    "\r",
    "\0",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "\u202e",
    "\x7f",
    "\x08",
)
#: Of a line of log: any of these would reach a terminal.
RAW_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_HEADERS = ("User-Agent", "X-Request-ID", "traceparent", "Idempotency-Key", "Last-Event-ID", "If-Match", "Origin", "Host",
            "Referer", "X-Forwarded-For", "Authorization", "Accept", "Content-Type")  # fmt: skip


def _percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def _requests(target: Target) -> Iterable[bytes]:
    body = b'{"name":'
    for control in CONTROLS:
        for header in _HEADERS:
            lines = [f"{header}: a{control}b", "Connection: close"]
            scope: ScopeName | None = None if header == "Authorization" else "admin"
            yield (
                target.head("GET /api/agents HTTP/1.1", *lines, scope=scope, host=header != "Host") + b"\r\n"
            )
        yield target.head("GET /api/agents HTTP/1.1", f"X{control}Y: b", "Connection: close") + b"\r\n"
        for path in ("/{}", "/api/agents/{}", "/api/tasks/{}/logs", "/api/secrets/{}", "/api/agents?name={}",
                     "/api/tasks?{}=1", "/api/docs/{}"):  # fmt: skip
            for text in (control, _percent(control)):
                for method in ("GET", "DELETE"):
                    line = f"{method} {path.format(text)} HTTP/1.1"
                    yield target.head(line, "Connection: close") + b"\r\n"
        yield target.head(f"G{control}ET /api/agents HTTP/1.1", "Connection: close") + b"\r\n"
        # In values of a body: as JSON escapes, and raw.
        for value in (json.dumps(control).encode(), b'"' + control.encode() + b'"'):
            document = body + value + b',"code":1,' + value + b":1}"
            for path in ("/api/agents", "/api/tokens", "/api/tasks/cancel"):
                head = target.head(
                    f"POST {path} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(document)}",
                    "Connection: close",
                )  # fmt: skip
                yield head + b"\r\n" + document


def _check_answer(sent: bytes, answer: bytes) -> int:
    status, (head, _, body) = status_of(answer), answer.partition(b"\r\n\r\n")
    require(count_answers(answer) <= 1, f"{count_answers(answer)} answers to {sent!r}")
    require(200 <= status < 500, f"{status} to {sent!r}")
    require(answer.startswith(b"HTTP/1.1 ") or status == 400, f"{answer[:30]!r} to {sent!r}")
    require(b"injected" not in head.lower(), f"a line of its own in the head of the answer to {sent!r}")
    shown = head.replace(b"\r\n", b"").decode("latin-1")
    require(not RAW_CONTROL.search(shown), f"control characters in the head of the answer to {sent!r}")
    # An agent's name, code and state are data of JSON; below 0x20 it has escapes alone.
    require(not re.search(rb"[\x00-\x09\x0b-\x1f]", body), f"control characters in the answer to {sent!r}")
    return status


async def _send_all(target: Target) -> list[int]:
    room = asyncio.Semaphore(16)

    async def send(data: bytes) -> int:
        async with room:
            return _check_answer(data, await target.exchange(data))

    return await asyncio.gather(*(send(data) for data in _requests(target)))


async def _logged(target: Target, form: str) -> tuple[list[int], list[str]]:
    """Send all to a server whose log has that form; return the statuses of its answers, and its lines of log."""
    async with target.twin(form) as twin:
        at = len(twin.log())
        seen = await _send_all(twin)
        lines = twin.log()[at:].split("\n")[:-1]
    for line in lines:
        require(not RAW_CONTROL.search(line), f"the log has {line[:200]!r}")
    require(len(lines) > 100, "the log is empty")
    return seen, lines


async def _json_log(target: Target) -> str:
    seen, lines = await _logged(target, "json")
    for line in lines:
        require({"time", "level", "message"} <= json.loads(line).keys(), f"the log has {line[:200]!r}")
    return f"{counted(seen)}; {len(lines)} lines of log, each one JSON object without control characters"


async def _text_log(target: Target) -> str:
    seen, lines = await _logged(target, "text")
    for line in lines:
        require(
            bool(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ ", line)), f"the log has the line {line[:200]!r}"
        )
    return f"{counted(seen)}; {len(lines)} lines of log, each begun by the server, without control characters"


async def _names(target: Target) -> str:
    seen = []
    async with target.session() as session:
        for control in CONTROLS:
            name = f"a{control}b"
            for path, document in (
                ("/api/agents", {"name": name, "code": "1"}),
                ("/api/agents", {"name": "a", "code": "", "files": {name: "1"}, "entrypoint": name}),
                ("/api/agents", {"name": "a", "code": "1", "config": {"env": {name: "1"}}}),
                ("/api/tokens", {"name": name, "scope": "read"}),
            ):
                reply = await session.ask("POST", path, json=document)
                require(reply.status == 422, f"{document} was answered {reply.status}")
                seen.append(reply.status)
            document = {"value": "canary-0123456789"}
            reply = await session.ask("PUT", f"/api/secrets/a{_percent(control)}b", json=document)
            require(reply.status in (404, 422), f"a secret's name was answered {reply.status}")
            seen.append(reply.status)
    return counted(seen)


CASES = (
    ClientCase(
        _GROUP,
        "ends of lines, NUL and escape sequences in paths, headers, methods and bodies",
        "one answer each, below 500, with no line of theirs; the log stays one JSON object a line",
        _json_log,
    ),
    ClientCase(
        _GROUP,
        "the same, where the log is text for a terminal",
        "no line of theirs, no control character",
        _text_log,
    ),
    ClientCase(
        _GROUP, "the same in names of agents, files, variables, tokens and secrets", "refused", _names
    ),
)
