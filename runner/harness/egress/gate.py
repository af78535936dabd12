"""`Gate`: decides about places, resolves names, and connects to what it checked and to nothing else.

A name is resolved once, all its addresses are checked, and one of those very addresses is connected to. So a name server
that answers differently the next time (DNS rebinding) changes nothing, and each redirect that a program follows is a new
question.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from harness.egress.decision import Decision, OnDecision, Verdict
from harness.egress.policy import Address, Network, Place, Rule, find_rule, may_connect

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
#: Returns the addresses behind a name; `OSError`: there are none.
Resolve = Callable[[str], Awaitable[Sequence[Address]]]

#: Bound on looking a name up and on connecting, together, and on one address of several, in seconds.
CONNECT_SECONDS = 10.0
ONE_ADDRESS_SECONDS = 5.0
#: Addresses of a name that are tried.
MAX_TRIED = 4
#: Names that one run has looked up at a time, and connections of all runs of this process: each takes a file descriptor,
#: of 1024 as a rule, and a server's clients may have 800.
LOOKUPS_AT_ONCE = 4
MAX_CONNECTIONS = 128
#: Read ahead from a server, in bytes.
BUFFER_BYTES = 32 * 1024


class RefusedError(Exception):
    """A connection that is not to be; the message is for the agent, and tells nothing about the network."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        #: HTTP status to answer with.
        self.status = status


class Outside:
    """What the runs of a process share on their way out: threads that resolve names, and a count of connections."""

    def __init__(
        self,
        *,
        private: Sequence[Network] = (),
        resolve: Resolve | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Make it.

        Args:
            private: Networks that may be reached though they are not public.
            resolve: None: the system's own way.
            max_connections: Of all runs together.
        """
        self.private = tuple(private)
        self.resolve = resolve or self._resolve
        self.connections = asyncio.BoundedSemaphore(max_connections)
        self._threads: ThreadPoolExecutor | None = None

    async def _resolve(self, host: str) -> Sequence[Address]:
        if self._threads is None:
            # Threads of its own: a lookup can hang for half a minute, and others need the loop's.
            self._threads = ThreadPoolExecutor(16, thread_name_prefix="resolve")
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        return [ipaddress.ip_address(entry[4][0]) for entry in found]

    def close(self) -> None:
        """Let the threads end. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


class Gate:
    """The way out of one run."""

    def __init__(self, rules: Sequence[Rule], outside: Outside, on_decision: OnDecision) -> None:
        self._rules = rules
        self._outside = outside
        self._on_decision = on_decision
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def open(self, place: Place) -> Stream:
        """Connect to a place, if the run may; the caller gives the stream back to `close`.

        Raises:
            RefusedError: It may not, or there is nothing to connect to.
        """
        if find_rule(self._rules, place) is None:
            why = f'it is not in the agent\'s egress list; add "{place}" to egress in its config'
            raise self._refused(place, why)
        if self._outside.connections.locked():
            raise self._failed(place, "too many connections are open in all; try again later", 503)
        await self._outside.connections.acquire()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect(place, await self._addresses(place))
        except TimeoutError:
            self._outside.connections.release()
            raise self._failed(place, f"no connection within {CONNECT_SECONDS:g} s", 504) from None
        except BaseException:
            self._outside.connections.release()
            raise

    def close(self, writer: asyncio.StreamWriter) -> None:
        """Close what `open` returned, in whatever state it is."""
        writer.transport.abort()
        self._outside.connections.release()

    def malformed(self, message: str, shown: str) -> None:
        """Note a request that was not understood."""
        self._on_decision(Decision(Verdict.REFUSED, shown, why=f"malformed request: {message}"))

    async def _addresses(self, place: Place) -> Sequence[Address]:
        address = place.address
        if address is not None:
            found: Sequence[Address] = [address]
        else:
            try:
                async with self._lookups:
                    found = await self._outside.resolve(place.host)
            except (OSError, UnicodeError):
                found = []
        if not found:
            raise self._failed(place, "its name could not be resolved")
        for one in found:
            if not may_connect(one, self._outside.private):
                raise self._refused(
                    place,
                    "its address is not one of the public Internet; an operator can name such a network in "
                    "HARNESS_EGRESS_PRIVATE, link-local and metadata addresses excepted",
                    one,
                )
        return found

    async def _connect(self, place: Place, addresses: Sequence[Address]) -> Stream:
        problem = ""
        tried = list(dict.fromkeys(addresses))[:MAX_TRIED]
        for address in tried:
            try:
                async with asyncio.timeout(ONE_ADDRESS_SECONDS):
                    # An address and no name, so nothing is resolved again.
                    stream = await asyncio.open_connection(str(address), place.port, limit=BUFFER_BYTES)
            except (OSError, TimeoutError) as error:
                problem = getattr(error, "strerror", None) or "no answer"
            else:
                self._on_decision(Decision(Verdict.ALLOWED, str(place), str(address)))
                return stream
        raise self._failed(place, f"it could not be connected to ({problem})", address=tried[-1])

    def _refused(self, place: Place, why: str, address: Address | None = None) -> RefusedError:
        self._on_decision(
            Decision(Verdict.REFUSED, str(place), None if address is None else str(address), why)
        )
        return RefusedError(f"{place} is refused: {why}", 403)

    def _failed(
        self, place: Place, why: str, status: int = 502, address: Address | None = None
    ) -> RefusedError:
        self._on_decision(
            Decision(Verdict.FAILED, str(place), None if address is None else str(address), why)
        )
        return RefusedError(f"{place} is allowed, but {why}", status)
