"""One connection of a program to the egress proxy, against servers of the tests' own on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from harness.egress.decision import Decision
from harness.egress.frames import (
    CUT,
    DATA,
    END,
    OPEN,
    WINDOW_BYTES,
    Decoder,
    Frame,
    encode,
    encode_ack,
)
from harness.egress.gate import Gate, Outside
from harness.egress.mux import Connection, RelayLink
from harness.egress.policy import parse_networks, parse_rule
from harness.egress.proxy import serve_connection

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Program:
    """A program in a sandbox with one connection to the proxy, and the relay between them."""

    def __init__(self) -> None:
        self._to_runner: asyncio.Queue[bytes] = asyncio.Queue()
        self._decoder = Decoder()
        self._received: asyncio.Queue[Frame] = asyncio.Queue()
        self.reads = True
        self.send(encode(OPEN, 1))

    # The pipe

    async def read(self) -> bytes:
        return await self._to_runner.get()

    def write(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (frame := self._decoder.take()) is not None:
            if frame.kind == DATA and self.reads:
                self.send(encode_ack(1, len(frame.payload)))
            self._received.put_nowait(frame)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    # The program

    def send(self, data: bytes) -> None:
        self._to_runner.put_nowait(data)

    def ask(self, data: bytes) -> None:
        self.send(encode(DATA, 1, data))

    async def until_end(self) -> tuple[bytes, bool]:
        """Return what comes until the proxy ends or cuts the connection, and whether it was cut."""
        data = bytearray()
        async with asyncio.timeout(10):
            while (frame := await self._received.get()).kind not in (END, CUT):
                data += frame.payload if frame.kind == DATA else b""
        return bytes(data), frame.kind == CUT

    async def until_data(self) -> bytes:
        async with asyncio.timeout(10):
            while (frame := await self._received.get()).kind != DATA:
                assert frame.kind not in (END, CUT)
        return frame.payload


@asynccontextmanager
async def program(
    *rules: str, idle_seconds: float = 10, decisions: list[Decision] | None = None
) -> AsyncIterator[Program]:
    decisions = [] if decisions is None else decisions
    outside = Outside(private=parse_networks("127.0.0.0/8"))
    gate = Gate([parse_rule(rule) for rule in rules], outside, decisions.append)
    made = Program()

    async def serve(connection: Connection) -> None:
        await serve_connection(connection, gate, idle_seconds=idle_seconds)

    running = asyncio.create_task(RelayLink(made, serve).run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0)


@asynccontextmanager
async def server(handle: Handle) -> AsyncIterator[str]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(served, "127.0.0.1", 0) as made:
        yield f"127.0.0.1:{made.sockets[0].getsockname()[1]}"


async def show(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the request itself."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head + await reader.readexactly(size))
    writer.write_eof()
    await reader.read()


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.write_eof()
    await writer.drain()


async def test_a_request_reaches_its_server_in_origin_form_and_the_answer_comes_back() -> None:
    async with server(show) as place, program(place) as asking:
        asking.ask(f"POST http://{place}/x HTTP/1.1\r\nHost: evil\r\nContent-Length: 4\r\n\r\nbo".encode())
        asking.ask(b"dy")
        answer, _ = await asking.until_end()

    expected = f"POST /x HTTP/1.1\r\nHost: {place}\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"
    assert answer == b"HTTP/1.1 200 OK\r\n\r\n" + expected.encode()


async def test_a_tunnel_carries_bytes_both_ways_and_each_end_by_itself() -> None:
    decisions: list[Decision] = []
    async with server(upper) as place, program(place, decisions=decisions) as asking:
        asking.ask(f"CONNECT {place} HTTP/1.1\r\n\r\nearly".encode())
        assert await asking.until_data() == b"HTTP/1.1 200 Connection established\r\n\r\n"
        assert await asking.until_data() == b"EARLY"
        asking.ask(b"later")
        assert await asking.until_data() == b"LATER"
        asking.ask(b"last")
        asking.send(encode(END, 1))
        assert await asking.until_end() == (b"LAST", False)

    assert decisions == [Decision("allowed", place, "127.0.0.1")]  # type: ignore[arg-type]


@pytest.mark.parametrize("behind", [b"GET http://other.example/ HTTP/1.1\r\n\r\n", b"x"])
async def test_a_second_request_on_a_connection_reaches_no_server(behind: bytes) -> None:
    got = bytearray()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            got.extend(data)

    async with server(note) as place, program(place) as asking:
        asking.ask(f"POST http://{place}/ HTTP/1.1\r\nContent-Length: 2\r\n\r\nab".encode() + behind)
        _, is_cut = await asking.until_end()

    assert is_cut
    assert behind not in got
    assert b"other.example" not in got


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET http://other.example/ HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT other.example:443 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT [fd00:ec2::254]:80 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT 127.0.0.1:9\r\nX: HTTP/1.1\r\n\r\n", 400),
        (b"GET http://2130706433/ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET http://a/ HTTP/1.1\r\nX: " + b"x" * 17_000, 431),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", 502),
    ],
)
async def test_what_is_not_served_is_answered_with_a_status_and_a_sentence(sent: bytes, status: int) -> None:
    decisions: list[Decision] = []
    async with program("127.0.0.1:1", "169.254.169.254:80", decisions=decisions) as asking:
        for at in range(0, len(sent), 10_000):
            asking.ask(sent[at : at + 10_000])
        answer, _ = await asking.until_end()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"Content-Length: {len(body)}".encode() in head
    assert body.endswith(b"\n")
    (decision,) = decisions
    assert decision.verdict != "allowed"
    assert (decision.place + decision.why).isprintable()


async def test_a_malformed_request_is_shown_on_one_line_without_its_controls() -> None:
    decisions: list[Decision] = []
    async with program("127.0.0.1:1", decisions=decisions) as asking:
        asking.ask(b"\x1b[2JCONNECT a\n[harness] egress allowed: b\r\n\r\n")
        await asking.until_end()

    assert decisions[0].place == "\\x1b[2JCONNECT a\\n[harness] egress allowed: b"


async def test_a_program_that_does_not_read_costs_a_window_and_is_cut_in_the_end() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(b"." * 65536)
            await writer.drain()
            sent += 65536

    async with server(pour) as place, program(place, idle_seconds=1) as asking:
        asking.reads = False
        asking.ask(f"CONNECT {place} HTTP/1.1\r\n\r\n".encode())
        data, is_cut = await asking.until_end()

    assert is_cut
    assert len(data) == WINDOW_BYTES
    # The rest is in the system's own buffers, and none of it here.
    assert sent < 16 * 1024 * 1024


async def test_a_server_that_says_nothing_is_given_up_after_a_while() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(wait) as place, program(place, idle_seconds=0.1) as asking:
        asking.ask(f"GET http://{place}/ HTTP/1.1\r\n\r\n".encode())
        assert await asking.until_end() == (b"", True)


async def test_a_program_that_says_nothing_and_leaves_is_no_decision() -> None:
    decisions: list[Decision] = []
    async with program("127.0.0.1:1", decisions=decisions) as asking:
        asking.send(encode(END, 1))
        assert await asking.until_end() == (b"", False)

    assert decisions == []
