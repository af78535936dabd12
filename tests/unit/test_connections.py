"""Connections that are kept between calls: which are used again, and what is read from them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from harness.sandbox.connections import Answer, Connections

#: Answers of the place that is asked, in order; None: it closes the connection instead.
Script = list[bytes | None]


class Place:
    """Somewhere to ask: answers by its script, over any number of connections."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.append(writer)
        try:
            while self.script:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                answer = self.script.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                if b"close" in answer:
                    break
            else:
                await reader.read()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def asking(script: Script) -> AsyncIterator[tuple[Connections, Place]]:
    place = Place(script)
    server = await asyncio.start_server(place.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    connections = Connections(lambda: asyncio.open_connection(host, port))
    try:
        yield connections, place
    finally:
        await connections.close()
        for writer in place.open:
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()


def answer(body: bytes = b"", *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


NO_CONTENT = b"HTTP/1.1 204 No Content\r\nApi-Version: 1.41\r\n\r\n"


async def test_calls_that_follow_one_another_share_a_connection() -> None:
    async with asking([answer(b"{}"), NO_CONTENT, answer(b"gone", status="404 Not Found")]) as (here, place):
        first = await here.ask("POST", "/create?name=x", b'{"a": 1}')
        second = await here.ask("POST", "/start")
        third = await here.ask("DELETE", "/x")

    assert (first, second, third) == (Answer(200, b"{}"), Answer(204, b""), Answer(404, b"gone"))
    assert place.connections == 1
    assert place.requests[0].startswith(b"POST /create?name=x HTTP/1.1\r\nHost: docker\r\n")
    assert place.requests[0].endswith(b'Content-Length: 8\r\n\r\n{"a": 1}')
    assert place.requests[1].endswith(b"Content-Length: 0\r\n\r\n")


async def test_calls_at_the_same_time_have_a_connection_each() -> None:
    async with asking([answer(b"1"), answer(b"2"), answer(b"3")]) as (here, place):
        answers = await asyncio.gather(*(here.ask("GET", "/") for _ in range(3)))

    assert sorted(each.body for each in answers) == [b"1", b"2", b"3"]
    assert place.connections == 3


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n1\r\na\r\n0\r\nTrailer: x\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH:  3\r\n\r\nabc", b"abc"),
    ],
)
async def test_a_body_ends_where_its_head_says_and_the_connection_goes_on(raw: bytes, body: bytes) -> None:
    async with asking([raw, answer(b"next")]) as (here, place):
        assert (await here.ask("GET", "/")).body == body
        assert (await here.ask("GET", "/")).body == b"next"

    assert place.connections == 1


@pytest.mark.parametrize(
    "last", [answer(b"x", more="Connection: close\r\n"), b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nx"]
)
async def test_after_a_last_answer_comes_another_connection(last: bytes) -> None:
    async with asking([last, answer(b"y")]) as (here, place):
        assert (await here.ask("GET", "/")).body == b"x"
        assert (await here.ask("GET", "/")).body == b"y"

    assert place.connections == 2


@pytest.mark.parametrize("turns", [0, 5])
async def test_a_connection_that_the_other_side_closed_is_not_used_again(turns: int) -> None:
    async with asking([answer(b"x"), answer(b"y")]) as (here, place):
        await here.ask("GET", "/")
        # At once for the system; the loop may or may not have noticed when the next call comes.
        place.open[0].get_extra_info("socket").shutdown(socket.SHUT_WR)
        for _ in range(turns):
            await asyncio.sleep(0)

        assert (await here.ask("GET", "/")).body == b"y"

    assert place.connections == 2


async def test_a_request_whose_connection_breaks_is_not_sent_again() -> None:
    async with asking([None, answer(b"x")]) as (here, place):
        with pytest.raises(EOFError):
            await here.ask("POST", "/create")

        assert len(place.requests) == 1
        assert (await here.ask("GET", "/")).body == b"x"


async def test_a_call_that_is_cancelled_leaves_no_connection_with_its_answer_to_come() -> None:
    async with asking([b"", answer(b"mine")]) as (here, place):
        asked = asyncio.create_task(here.ask("GET", "/slow"))
        async with asyncio.timeout(5):
            while not place.requests:  # noqa: ASYNC110 - the other side's doing
                await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

        assert (await here.ask("GET", "/")).body == b"mine"

    assert place.connections == 2


@pytest.mark.parametrize("raw", [b"what?\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"])
async def test_what_is_no_http_is_an_error(raw: bytes) -> None:
    async with asking([raw]) as (here, _):
        with pytest.raises(ValueError, match=r"invalid literal|not enough values"):
            await here.ask("GET", "/")


async def test_a_call_under_way_while_all_is_closed_ends_and_closes_its_connection() -> None:
    async with asking([answer(b"late")]) as (here, _):
        asked = asyncio.create_task(here.ask("GET", "/"))
        await asyncio.sleep(0)
        await here.close()

        assert (await asked).body == b"late"
        assert here._idle == []
