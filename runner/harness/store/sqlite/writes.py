"""Writes that share a commit: what waits for the connection at one moment is made durable by one sync of the disk.

A commit's price is the sync, whatever is in it. So the writes that are waiting when the connection is free run in one
transaction, each inside a savepoint: one that raises undoes itself alone. Nobody is answered before the commit. When the
transaction as a whole fails, be it at its commit or because SQLite rolls it back at a full disk, each of its writes is
run once more in a transaction of its own: so each fails for its own reason only, and none is taken for done that is not.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

#: How long a transaction takes up more writes. It bounds what the first of them waits, and other processes for the lock.
GROUP_SECONDS = 0.025

#: What a statement raises; sqlite3 makes SQLITE_NOMEM a MemoryError.
_FAILURES = (sqlite3.Error, MemoryError)

T = TypeVar("T")


class Write(Generic[T]):
    """One write: what it does inside a transaction, which may be run again, and who waits for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], T]) -> None:
        """Belong to the running event loop."""
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None

    def run_alone(self, connection: sqlite3.Connection) -> None:
        """Run in a transaction of its own."""
        try:
            self._result = transact(connection, "BEGIN IMMEDIATE", self._work)
        except BaseException as error:  # noqa: BLE001 - the waiting caller gets it
            self._error = error

    def run_among_others(self, connection: sqlite3.Connection) -> None:
        """Run inside the open transaction; one that raises leaves no trace, unless it took the transaction with it."""
        connection.execute("SAVEPOINT one_write")
        try:
            self._result = self._work(connection)
        except BaseException as error:  # noqa: BLE001 - as above
            self._error = error
            if connection.in_transaction:
                connection.execute("ROLLBACK TO one_write")
        if connection.in_transaction:
            connection.execute("RELEASE one_write")

    def forget(self) -> None:
        """Be as if it had not run."""
        self._result = self._error = None

    def fail(self, error: BaseException) -> None:
        """Be answered with an error."""
        self._error = error

    def tell(self) -> None:
        """Answer, in the event loop's thread; a caller that was cancelled is not there any more."""
        if self.answer.done():
            return
        if self._error is not None:
            self.answer.set_exception(self._error)
        else:
            result: Any = self._result
            self.answer.set_result(result)


class WriteQueue:
    """Writes of one connection that wait; added by the event loop, taken by the connection's thread."""

    def __init__(self) -> None:
        """Be empty."""
        self._waiting: deque[Write[Any]] = deque()

    def add(self, work: Callable[[sqlite3.Connection], T]) -> Write[T]:
        """Add a write; the caller then has the connection's thread call `run_some`, once for each."""
        write = Write(work)
        self._waiting.append(write)
        return write

    def run_some(self, connection: sqlite3.Connection) -> None:
        """Run and answer those that wait, for `GROUP_SECONDS`; the others have calls of their own. Never raises."""
        if not self._waiting:
            return
        if len(self._waiting) == 1:
            group = [self._waiting.popleft()]
            group[0].run_alone(connection)
        else:
            group = self._run_together(connection)
        _answer(group)

    def _run_together(self, connection: sqlite3.Connection) -> list[Write[Any]]:
        waiting = len(self._waiting)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except _FAILURES as error:
            # They all waited for the lock that did not come; who joined them meanwhile may be luckier.
            group = [self._waiting.popleft() for _ in range(waiting)]
            for write in group:
                write.fail(error)
            return group
        group = []
        until = time.monotonic() + GROUP_SECONDS
        try:
            while self._waiting and connection.in_transaction and time.monotonic() < until:
                group.append(self._waiting.popleft())
                group[-1].run_among_others(connection)
            # Fails as well when there is no transaction any more.
            connection.execute("COMMIT")
        except _FAILURES:
            if connection.in_transaction:
                with suppress(*_FAILURES):
                    connection.execute("ROLLBACK")
            for write in group:
                write.forget()
                write.run_alone(connection)
        return group


def transact(connection: sqlite3.Connection, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run `work` in a transaction that is opened by the statement `begin`; when it raises, nothing is written."""
    connection.execute(begin)
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _answer(group: Sequence[Write[Any]]) -> None:
    """Wake each event loop once, however many of its callers wait."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Write[Any]]] = defaultdict(list)
    for write in group:
        by_loop[write.answer.get_loop()].append(write)
    for loop, writes in by_loop.items():
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, writes)


def _tell(writes: Sequence[Write[Any]]) -> None:
    for write in writes:
        write.tell()
