"""Clients that send what is too large, no JSON, or no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io

from tests.abuse.clients.access import ALL, path_of
from tests.abuse.clients.target import (
    ClientCase,
    Session,
    Target,
    count_answers,
    counted,
    require,
    status_of,
)
from tests.attacks import GIB, MIB, SLACK_BYTES, endless_body

from harness_server.endpoint import JSON, MAX_BODY_BYTES, Endpoint

_GROUP = "clients: bodies and framing"

#: Every endpoint that reads a body.
READERS: tuple[Endpoint, ...] = tuple(endpoint for endpoint in ALL if endpoint.body is not None)

_CODE_BYTES = 100 * MIB

#: No JSON, or JSON that two readers may read in two ways.
_WRONG_JSON: dict[str, bytes] = {
    "10,000 deep lists": b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "10,000 deep, never closed": b'{"state":' * 10_000,
    "an integer of 100,000 digits": b'{"state":{"a":' + b"9" * 100_000 + b"}}",
    "a number beyond all": b'{"state":{"a":1e400}}',
    "a name twice": b'{"name":"a","name":"b","code":"1","state":{},"state":{}}',
    "a name twice, inside": b'{"state":{"a":1,"a":2},"context":{"a":1,"a":2},"config":{"a":1,"a":2}}',
    "NaN": b'{"state":{"a":NaN},"context":{"a":NaN}}',
    "Infinity": b'{"state":{"a":-Infinity},"context":{"a":-Infinity}}',
    "no UTF-8": b'{"name":"\xff\xfe","code":"\xc0\x80"}',
    "a surrogate in UTF-8": b'{"name":"\xed\xa0\x80","code":"1"}',
    "a lone surrogate": b'{"name":"\\ud800","code":"\\udfff","state":{"a":"\\ud800"},"context":{"\\ud800":1}}',
    "UTF-16": '{"name":"a","code":"1"}'.encode("utf-16"),
    "UTF-32": '{"name":"a","code":"1"}'.encode("utf-32"),
    "a byte order mark": b'\xef\xbb\xbf{"name":"a","code":"1"}',
    "two documents": b'{"name":"a"}{"code":"1"}',
    "a comment": b'{"name":"a"/*,*/,"code":"1"}',
    "single quotes": b"{'name':'a'}",
    "a trailing comma": b'{"name":"a","code":"1",}',
    "a NUL at the end": b'{"name":"a","code":"1"}\0',
    "a list": b"[]",
    "a text": b'"name"',
    "null": b"null",
    "blanks": b"   ",
}  # fmt: skip

_TYPES = (
    "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/html",
    "application/xml", "application/yaml", "application/json5", "application/octet-stream", "application/*", "*/*",
    "json", "",
)  # fmt: skip

_CHUNKED = "Transfer-Encoding: chunked"
#: What a proxy and a server may take for different requests: headers, and what follows the head.
_FRAMINGS: tuple[tuple[tuple[str, ...], bytes], ...] = (
    (("Content-Length: 4", _CHUNKED), b"0\r\n\r\n{smuggled}"),
    ((_CHUNKED, "Content-Length: 100"), b"0\r\n\r\n{smuggled}"),
    (("Content-Length: 2", "Content-Length: 100"), b"{{}}{smuggled}"),
    (("Content-Length: 2, 100",), b"{{}}{smuggled}"),
    (("Content-Length: +2",), b"{{}}{smuggled}"),
    (("Content-Length: -1",), b"{smuggled}"),
    (("Content-Length: 0x2",), b"{{}}{smuggled}"),
    (("Content-Length: 2 2",), b"{{}}{smuggled}"),
    (("Content-Length: " + "9" * 40,), b"{{}}{smuggled}"),
    (("Content-Length : 2",), b"{{}}{smuggled}"),
    (("Transfer-Encoding : chunked",), b"0\r\n\r\n{smuggled}"),
    (("Transfer-Encoding: xchunked",), b"0\r\n\r\n{smuggled}"),
    (("Transfer-Encoding: chunked, identity",), b"0\r\n\r\n{smuggled}"),
    (("Transfer-Encoding: identity", "Content-Length: 2"), b"{{}}{smuggled}"),
    (("Transfer-Encoding: \x0bchunked",), b"0\r\n\r\n{smuggled}"),
    (("X: y", " Transfer-Encoding: chunked"), b"0\r\n\r\n{smuggled}"),
    ((_CHUNKED, "Transfer-Encoding: identity"), b"0\r\n\r\n{smuggled}"),
    ((_CHUNKED,), b"ffffffffffffffffff\r\n{smuggled}"),
    ((_CHUNKED,), b"-2\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
    ((_CHUNKED,), b"0x2\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
    ((_CHUNKED,), b"3\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
    ((_CHUNKED,), b"1\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
    ((_CHUNKED,), b"2\n{{}}\n0\n\n{smuggled}"),
    ((_CHUNKED,), b"2\r\n{{}}\r\n0\r\nX: " + b"a" * 100_000 + b"\r\n\r\n{smuggled}"),
)

_HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a URL of a megabyte": ("/api/agents?name=" + "a" * MIB, ()),
    "a URL of 9,000 letters": ("/api/agents/" + "1" * 9000, ()),
    "a header of a megabyte": ("/api/agents", ("X: " + "a" * MIB,)),
    "a header of 9,000 letters": ("/api/agents", ("X: " + "a" * 9000,)),
    "a name of 9,000 letters": ("/api/agents", ("X" * 9000 + ": 1",)),
    "a token of 9,000 letters": ("/api/agents", ("Authorization: Bearer " + "a" * 9000,)),
    "10,000 headers": ("/api/agents", tuple(f"X-{number}: 1" for number in range(10_000))),
    "1,000 parameters": ("/api/agents?" + "&".join("name=a" for _ in range(1000)), ()),
}


async def _bomb(target: Target) -> str:
    # Members one after the other are one gzip file (RFC 1952, section 2.2).
    bomb = gzip.compress(bytes(16 * MIB)) * (GIB // (16 * MIB))
    memory, seen = target.memory(), []
    async with target.session() as session:
        for endpoint in READERS:
            for encoding in ("gzip", "deflate", "br", "zstd", "identity, gzip"):
                headers = {"Content-Encoding": encoding, "Content-Type": JSON}
                with contextlib.suppress(ConnectionError):
                    reply = await session.ask(
                        endpoint.method, path_of(endpoint, target), data=io.BytesIO(bomb), headers=headers
                    )
                    require(reply.status == 415, f"{endpoint.name} answered {reply.status}")
                    seen.append(reply.status)
    grown = memory.growth_bytes()
    require(grown < SLACK_BYTES, f"the server grew by {grown / MIB:.0f} MiB")
    return (
        f"{counted(seen)}; {len(bomb) / MIB:.1f} MiB sent each time, the server grew by {grown / MIB:.0f} MiB"
    )


async def _large(target: Target) -> str:
    memory, seen = target.memory(), []
    for chunked in (False, True):
        framing = _CHUNKED if chunked else f"Content-Length: {_CODE_BYTES}"
        head = target.head("POST /api/agents HTTP/1.1", f"Content-Type: {JSON}", framing)
        reader, writer = await target.connect()

        async def send(
            head: bytes = head, writer: asyncio.StreamWriter = writer, chunked: bool = chunked
        ) -> None:
            body = b'{"name":"large","code":"'
            begin = head + b"\r\n" + (f"{len(body):x}\r\n".encode() + body + b"\r\n" if chunked else body)
            with contextlib.suppress(ConnectionError):
                async for piece in endless_body(begin, _CODE_BYTES, chunked=chunked):
                    writer.write(piece)
                    await writer.drain()

        sending = asyncio.create_task(send())
        try:
            seen.append(status_of(await reader.readline()))
            require(seen[-1] == 413, f"it was answered {seen[-1]}")
        finally:
            sending.cancel()
            writer.close()
    async with target.session() as session:
        # As much as a body may have, which is more than an agent's code may.
        document = b'{"name":"large","code":"' + b"x" * (MAX_BODY_BYTES - 1000) + b'"}'
        reply = await session.ask(
            "POST", "/api/agents", data=io.BytesIO(document), headers={"Content-Type": JSON}
        )
        require(reply.status == 422, f"31 MiB of code were answered {reply.status}")
        seen.append(reply.status)
    grown = memory.growth_bytes()
    # The body, what is read of it twice, and what was not yet given back of the one before.
    bound = 6 * MAX_BODY_BYTES
    require(grown < bound, f"the server grew by {grown / MIB:.0f} MiB")
    return f"{counted(seen)}; the server grew by {grown / MIB:.0f} MiB"


async def _ask_json(
    session: Session, endpoint: Endpoint, target: Target, body: bytes, kind: str = JSON
) -> int:
    reply = await session.ask(
        endpoint.method, path_of(endpoint, target), data=body, headers={"Content-Type": kind}
    )
    return reply.status


async def _wrong_json(target: Target) -> str:
    seen = []
    async with target.session() as session:
        for endpoint in READERS:
            for name, body in _WRONG_JSON.items():
                status = await _ask_json(session, endpoint, target, body)
                require(status == 422, f"{endpoint.name} answered {status} to {name}")
                seen.append(status)
    return counted(seen)


async def _wrong_type(target: Target) -> str:
    seen = []
    async with target.session() as session:
        for endpoint in READERS:
            for kind in _TYPES:
                status = await _ask_json(session, endpoint, target, b'{"name":"a","code":"1"}', kind)
                require(status == 415, f"{endpoint.name} answered {status} to {kind!r}")
                seen.append(status)
    return counted(seen)


async def _smuggle(target: Target) -> str:
    hidden = target.head(f"DELETE /api/agents/{target.agent_id} HTTP/1.1", "Connection: close") + b"\r\n"
    seen = []
    for line in (
        "POST /api/schedules/preview HTTP/1.1",
        "GET /api/agents HTTP/1.1",
        "POST /api/agents HTTP/1.1",
    ):
        for headers, rest in _FRAMINGS:
            head = target.head(line, f"Content-Type: {JSON}", *headers)
            body = rest.replace(b"{smuggled}", hidden).replace(b"{{}}", b"{}")
            answer = await target.exchange(head + b"\r\n" + body)
            require(count_answers(answer) <= 1, f"{count_answers(answer)} answers to {line}, {headers}")
            require(400 <= status_of(answer) < 500, f"{line}, {headers}: answered {answer[:30]!r}")
            seen.append(status_of(answer))
    return f"{counted(seen)}; what was hidden in them was not done"


async def _large_heads(target: Target) -> str:
    memory, seen = target.memory(), []
    for name, (path, headers) in _HEADS.items():
        answer = await target.exchange(
            target.head(f"GET {path} HTTP/1.1", *headers, "Connection: close") + b"\r\n"
        )
        # Closed on a client that still sends, the answer may be lost.
        require(status_of(answer) in (0, 400, 422), f"{name} was answered {answer[:30]!r}")
        seen.append(status_of(answer) or "closed")
    grown = memory.growth_bytes()
    require(grown < SLACK_BYTES, f"the server grew by {grown / MIB:.0f} MiB")
    return f"{counted(seen)}; the server grew by {grown / MIB:.0f} MiB"


async def _pipeline(target: Target) -> str:
    """Ask without end on one connection, and read nothing."""
    memory, sent = target.memory(), 0
    piece = (target.head("GET /api/agents HTTP/1.1") + b"\r\n") * 1000
    _, writer = await target.connect()
    try:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(4):
                while sent < 500_000:
                    writer.write(piece)
                    await writer.drain()
                    sent += 1000
    finally:
        writer.transport.abort()
    grown = memory.growth_bytes()
    require(grown < SLACK_BYTES, f"the server grew by {grown / MIB:.0f} MiB for {sent:,} requests")
    return f"{sent:,} requests taken before it took no more; the server grew by {grown / MIB:.0f} MiB"


CASES = (
    ClientCase(_GROUP, "a gibibyte as gzip, at every endpoint that reads a body", "415, not unfolded", _bomb),
    ClientCase(_GROUP, "an agent with 100 MiB of code", "413; at most 32 MiB of it are held", _large),
    ClientCase(
        _GROUP,
        "10,000 levels, huge integers, names twice, NaN, half characters, no UTF-8, no JSON, at each of them",
        "422",
        _wrong_json,
    ),
    ClientCase(_GROUP, "JSON declared as something else, at each of them", "415", _wrong_type),
    ClientCase(
        _GROUP,
        "lengths and chunks that two readers read in two ways, with a request hidden behind (smuggling)",
        "one answer, 4xx; the hidden one is not done",
        _smuggle,
    ),
    ClientCase(_GROUP, "URLs and headers without measure", "400, or closed, in flat memory", _large_heads),
    ClientCase(
        _GROUP, "requests on one connection without end, and no answer read", "flat memory", _pipeline
    ),
)
