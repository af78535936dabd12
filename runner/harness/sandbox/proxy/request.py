"""One HTTP request, read strictly: whatever two programs could understand differently is refused."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

#: Bound on request line and headers together. The product sends about 300 bytes.
MAX_HEAD_BYTES = 16 * 1024
#: Bound on a body. A creation is about 1 KiB; the environment of an agent in another language may add to that.
MAX_BODY_BYTES = 256 * 1024
#: Bound on the arrival of a whole request.
REQUEST_TIMEOUT_SECONDS = 10.0

#: Characters of a target that need no decoding. A percent sign stands in a query or for the ``@`` of an image's digest.
_REQUEST_LINE = re.compile(
    rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (/[A-Za-z0-9._~:/@%-]{0,1024})(?:\?([!-~]*))? HTTP/(1\.[01])"
)
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([ -~\t]*)")


class RefusedError(Exception):
    """A call that does not pass; the message names what is at fault."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.message = message
        #: HTTP status of the answer.
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was read; nothing in it has been decoded yet but the body's length."""

    method: str
    path: str
    query: str
    #: ``1.0`` or ``1.1``; the engine is asked in the same, since it decides the shape of the answer.
    version: str
    #: Whether it asks for a raw stream in place of an answer (``Connection: Upgrade`` and ``Upgrade: tcp``).
    is_upgrade: bool
    body: bytes


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read one request; None when the client left without one.

    Raises:
        RefusedError: It is malformed, ambiguous, too large or too late.
    """
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head[:-4].split(b"\r\n")
            headers = _headers(lines[1:])
            method, path, query, version = _request_line(lines[0])
            body = await reader.readexactly(_body_length(headers))
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise RefusedError("the request ends in the middle", 400) from error
    except asyncio.LimitOverrunError as error:
        raise RefusedError(f"the head of the request is larger than {MAX_HEAD_BYTES} bytes", 431) from error
    except TimeoutError as error:
        raise RefusedError(f"the request did not arrive within {REQUEST_TIMEOUT_SECONDS:g} s", 408) from error
    return Request(method, path, query, version, _is_upgrade(headers), body)


def _request_line(line: bytes) -> tuple[str, str, str, str]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise RefusedError(f"the request line {_shown(line)} is not one that Docker's clients send", 400)
    method, path, query, version = match.groups(default=b"")
    return method.decode(), path.decode(), query.decode(), version.decode()


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise RefusedError(f"the header {_shown(line)} is malformed", 400)
        name, value = match[1].decode().lower(), match[2].decode().strip()
        if name in headers:
            raise RefusedError(f"the header {name!r} is there twice", 400)
        headers[name] = value
    for name in ("transfer-encoding", "content-encoding", "expect", "trailer", "te"):
        if name in headers:
            raise RefusedError(
                f"the header {name!r} is not let through; send a plain body with Content-Length", 400
            )
    return headers


def _body_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", text):
        raise RefusedError(f"the Content-Length {text[:40]!r} is malformed", 400)
    length = int(text)
    if length > MAX_BODY_BYTES:
        raise RefusedError(f"the body has {length} bytes; {MAX_BODY_BYTES} are let through", 413)
    return length


def _is_upgrade(headers: dict[str, str]) -> bool:
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    if "upgrade" not in options and "upgrade" not in headers:
        return False
    if options != {"upgrade"} or headers.get("upgrade", "").lower() != "tcp":
        # Above all not h2c: what follows it is requests that nobody here would see.
        raise RefusedError("of upgrades only 'Upgrade: tcp' is let through", 400)
    return True


def parse_json(text: bytes | str, what: str) -> Any:
    """Decode JSON in the one way that every reader would.

    Args:
        text: All of it.
        what: What it is, for the message.

    Raises:
        RefusedError: It is no JSON, or has a key twice, a number that is none, or more nesting than anybody needs.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise RefusedError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise RefusedError(f"{what} is not JSON as it should be: {error}", 400) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RefusedError(f"the key {twice[:80]!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("ascii", "backslashreplace"))
