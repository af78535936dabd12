"""What hostile clients attack: a server with tokens, seen from outside by HTTP and raw sockets, and from inside by its store,
its log and its memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from tests.abuse.case import HarmError
from tests.attacks import Memory
from tests.torture.fleet import Member

from harness.client import HarnessClient
from harness.models import AgentDraft
from harness.tokens import ScopeName, TokenDraft

#: How long one question of a hostile client may take.
ASK_SECONDS = 20.0
#: How long a server may take to start.
START_SECONDS = 20
#: In the names of tokens that a case makes; they stay in the store, revoked or not.
OF_A_CASE = "of a case"

#: Of all that a store holds, what a client could want to change. The victim goes on meanwhile.
_TABLES = {
    "agents": "SELECT id, name, version, config, code, files, deleting FROM agents WHERE name != 'victim'",
    "schedules": "SELECT s.* FROM schedules s JOIN agents a ON a.id = s.agent_id WHERE a.name != 'victim'",
    "artifacts": "SELECT s.* FROM artifacts s JOIN agents a ON a.id = s.agent_id WHERE a.name != 'victim'",
    "tasks": "SELECT t.* FROM tasks t JOIN agents a ON a.id = t.agent_id WHERE a.name != 'victim'",
    "secrets": "SELECT * FROM secrets",
    "tokens": f"SELECT id, name, scope, secret_hash, revoked_at FROM tokens WHERE name != '{OF_A_CASE}'",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        """Of a problem document."""
        return str(self.json()["code"])

    def json(self) -> Any:
        return json.loads(self.body)


class Session:
    """One client at one address, with or without a token."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str | None) -> None:
        self._session = session
        self._url = url
        self._token = token

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **given: Any,
    ) -> Reply:
        """Send a request; `given` is for aiohttp."""
        shown = token or self._token
        sent = {} if shown is None else {"Authorization": f"Bearer {shown}"}
        while True:
            async with self._session.request(
                method, self._url + path, headers={**sent, **(headers or {})}, **given
            ) as answer:
                reply = Reply(answer.status, await answer.read(), answer.headers)
            # Who is let in but asks too fast is no answer to what was asked.
            if reply.status != 429 or "RateLimit" not in reply.headers:
                return reply
            await asyncio.sleep(0.2)


@dataclass(slots=True)
class Target:
    """A running server."""

    url: str
    pid: int
    #: Where its store and its log are.
    folder: Path
    log: Callable[[], str]
    #: One of everything's owner, who is not hostile.
    owner: str
    #: One of each scope, which the server has seen before: their holders are hostile. Never the neighbours'.
    tokens: Mapping[ScopeName, str]
    #: An agent with a handoff, which attacks aim at; it never runs.
    agent_id: int
    _sources: Iterable[int] = field(default_factory=itertools.count)

    @property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    def source(self) -> str:
        """Return an address of this machine that nobody has asked from yet."""
        number = next(iter(self._sources))
        return f"127.{77 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"

    @asynccontextmanager
    async def session(
        self, scope: ScopeName | None = "admin", *, source: str | None = None
    ) -> AsyncIterator[Session]:
        """Be a client."""
        connector = aiohttp.TCPConnector(local_addr=(source or self.source(), 0), limit=50)
        timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield Session(session, self.url, None if scope is None else self.tokens[scope])

    def client(self, scope: ScopeName = "admin") -> HarnessClient:
        """Return the product's own client."""
        return HarnessClient(self.url, token=self.tokens[scope])

    async def connect(
        self, *, source: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection of its own."""
        parts = urlsplit(self.url)
        return await asyncio.open_connection(
            parts.hostname, parts.port, local_addr=(source or "127.0.0.1", 0), limit=2**20
        )

    def head(self, line: str, *headers: str, scope: ScopeName | None = "admin", host: bool = True) -> bytes:
        """Return the head of a request with a token, up to and without the empty line."""
        lines = [line]
        if host:
            lines.append(f"Host: {self.netloc}")
        if scope is not None:
            lines.append(f"Authorization: Bearer {self.tokens[scope]}")
        return "\r\n".join([*lines, *headers, ""]).encode("utf-8", "surrogateescape")

    async def exchange(
        self, data: bytes, *, source: str | None = None, seconds: float = ASK_SECONDS
    ) -> bytes:
        """Send bytes on a connection of their own; return all that comes back until the server closes it.

        Raises:
            HarmError: It never does.
        """
        reader, writer = await self.connect(source=source)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            pieces = []
            try:
                async with asyncio.timeout(seconds):
                    with contextlib.suppress(ConnectionError):
                        while piece := await reader.read(2**16):
                            pieces.append(piece)
            except TimeoutError:
                raise HarmError(f"no end of the answer to {data[:80]!r}") from None
            return b"".join(pieces)
        finally:
            writer.close()

    @asynccontextmanager
    async def twin(self, log_format: str) -> AsyncIterator[Target]:
        """Start another such server, which logs each request."""
        folder = self.folder / f"twin-{log_format}"
        folder.mkdir()
        async with open_target(folder, "--log-format", log_format, "--log-requests") as twin:
            yield twin

    def memory(self) -> Memory:
        """Begin to watch the server's memory."""
        return Memory(self.pid)

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return what the store holds."""
        with closing(sqlite3.connect(self._database, uri=True, timeout=10)) as connection:
            return {name: sorted(connection.execute(query), key=repr) for name, query in _TABLES.items()}

    @property
    def _database(self) -> str:
        return f"file:{self.folder / 'data' / 'harness.db'}?mode=ro"

    def count_audit(self) -> int:
        """Return how many lines the audit log has."""
        with closing(sqlite3.connect(self._database, uri=True, timeout=10)) as connection:
            return int(connection.execute("SELECT count(*) FROM audit").fetchone()[0])


@asynccontextmanager
async def open_target(folder: Path, *options: str) -> AsyncIterator[Target]:
    """Start a server on a store of its own, with tokens; end it when this is left."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {"HARNESS_DATA_DIR": str(folder / "data"), "HARNESS_MONGODB_URI": ""}
    member = Member("server", ["serve", "--port", str(port), *options], environment, folder)
    member.tend()
    try:
        await _answers(url)
        async with HarnessClient(url) as anybody:
            owner = (await anybody.create_token(TokenDraft(name="owner", scope="admin"))).text
        tokens: dict[ScopeName, str] = {}
        async with HarnessClient(url, token=owner) as client:
            scopes: tuple[ScopeName, ...] = ("read", "run", "admin")
            for scope in scopes:
                tokens[scope] = (
                    await client.create_token(TokenDraft(name=f"hostile {scope}", scope=scope))
                ).text
                async with HarnessClient(url, token=tokens[scope]) as known:
                    await known.list_agents()
            agent = await client.create_agent(AgentDraft(name="bystander", code="print('never')"))
            await client.put_handoff(agent.id, {"n": 1})
        yield Target(url, member.pid, folder, member.log, owner, tokens, agent.id)
    finally:
        await member.end()


async def _answers(url: str) -> None:
    async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class ClientCase:
    """One hostile client."""

    group: str
    attack: str
    expected: str
    #: Attacks, and returns what was observed, as a few words for the table.
    #:
    #: Raises:
    #:     HarmError: It is not what was expected.
    act: Callable[[Target], Awaitable[str]]


def require(holds: bool, what: str) -> None:
    """Complain unless something holds."""
    if not holds:
        raise HarmError(what)


async def attack(case: ClientCase, target: Target, *, seconds: float) -> str:
    """Have a client attack; return what was observed.

    Raises:
        HarmError: It got somewhere, took too long, or something of others in the store has changed.
    """
    before, at = target.content(), len(target.log())
    try:
        async with asyncio.timeout(seconds):
            observed = await case.act(target)
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        raise HarmError(f"the server did not answer: {error!r}") from error
    after = target.content()
    changed = [name for name in before if before[name] != after[name]]
    require(not changed, f"{', '.join(changed)} of others have changed; {observed}")
    crashed = [
        line for line in target.log()[at:].splitlines() if re.search("request_crashed|Traceback", line)
    ]
    require(not crashed, f"the log has {crashed[:1]}")
    return observed


def counted(things: Iterable[object]) -> str:
    """Return how often each thing occurs, as words."""
    counts: dict[object, int] = {}
    for thing in things:
        counts[thing] = counts.get(thing, 0) + 1
    return ", ".join(
        f"{number:,} times {thing}" for thing, number in sorted(counts.items(), key=lambda item: str(item[0]))
    )


def status_of(answer: bytes) -> int:
    """Return the status of raw bytes; 0: the server closed without a word."""
    found = re.match(rb"HTTP/[0-9]\.[0-9] ([0-9]{3}) ", answer)
    return int(found[1]) if found else 0


def count_answers(answer: bytes) -> int:
    """Return how many answers there are in raw bytes."""
    return len(re.findall(rb"HTTP/[0-9]\.[0-9] [0-9]{3} ", answer))
