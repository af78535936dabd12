"""One invocation: settings, stores, signals, and every error as a line and an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from harness.cli.render import NoteHandler, note, print_json
from harness.errors import (
    AgentNotFoundError,
    AuthenticationError,
    BodyTooLargeError,
    ConflictError,
    HarnessError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    SandboxError,
    ServerUnavailableError,
    SettingsError,
    StoreError,
)

if TYPE_CHECKING:
    from harness.api import HarnessApi
    from harness.client import HarnessClient
    from harness.models import Agent
    from harness.ports import Store
    from harness.settings import Settings

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_INVALID = 2
EXIT_NOT_FOUND = 3
EXIT_UNAVAILABLE = 4
#: As a shell reports a program that ended by SIGPIPE.
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

EXIT_CODES_HELP = """\b
Exit codes:
  0    done; for run: the run completed; for serve and runner: stopped
  1    the run failed, doctor found a problem, or something else went wrong
  2    usage error, or invalid input or settings, or a token that won't do
  3    no such agent, task or artifact; or a conflict with what is stored
  4    server, store or Docker Engine not available, or an image is missing
  130  interrupted (Ctrl+C), 143 terminated, 129 hung up; services: twice
  141  nobody reads the output"""

_EXIT_BY_ERROR: tuple[tuple[type[HarnessError], int], ...] = (
    (InvalidInputError, EXIT_INVALID),
    (SettingsError, EXIT_INVALID),
    (BodyTooLargeError, EXIT_INVALID),
    (AuthenticationError, EXIT_INVALID),
    (PermissionDeniedError, EXIT_INVALID),
    (NotFoundError, EXIT_NOT_FOUND),
    (ConflictError, EXIT_NOT_FOUND),
    (StoreError, EXIT_UNAVAILABLE),
    (SandboxError, EXIT_UNAVAILABLE),
    (ServerUnavailableError, EXIT_UNAVAILABLE),
    (RateLimitedError, EXIT_UNAVAILABLE),
)


class StoppedBySignalError(Exception):
    """The command was stopped by a signal, and has cleaned up."""

    def __init__(self, number: signal.Signals, message: str = "") -> None:
        super().__init__(message or f"stopped by {number.name}")
        self.number = number


def exit_code(error: HarnessError) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _EXIT_BY_ERROR if isinstance(error, kind)), EXIT_FAILED)


def complain(message: str, *, code: str, as_json: bool) -> None:
    """Print an error to standard error: a line, or a JSON document."""
    try:
        if as_json:
            print_json({"error": {"code": code, "message": message}}, stream=sys.stderr, indent=None)
        else:
            note(message, label="error:")
    except OSError:
        mute(sys.stderr)  # nobody can be told; the exit code still says it


def prepare_streams() -> None:
    """Make standard streams that any text can be printed to, and show the product's warnings as notes."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with the descriptor closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - lives as long as we
    # A terminal or locale that lacks a character is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("harness").handlers[:] = [NoteHandler(logging.WARNING)]


def mute(stream: TextIO) -> None:
    """Send what is still buffered for a stream nowhere, so that the interpreter's last flush can't fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end; SIGINT, SIGTERM and SIGHUP cancel it, so that it cleans up first.

    Raises:
        StoppedBySignalError: A signal came, and the coroutine ended by its cancellation.
    """
    return asyncio.run(_with_signals(work))


async def _with_signals(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work())
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()
        elif len(received) == 2:
            note("still cleaning up; once more leaves at once, and a later sweep removes what is left behind")
        else:
            # Threads may hang in a call to a mute engine, and the interpreter would wait for them.
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # by nohup, or a shell that runs us in the background
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise StoppedBySignalError(received[0]) from None
        raise


@asynccontextmanager
async def open_api() -> AsyncIterator[HarnessApi]:
    """Open the service: at the server that HARNESS_URL names, or on the store that the settings name.

    Neither needs a Docker Engine here, and so commands work without one.

    Raises:
        SettingsError: HARNESS_URL is no URL of a server.
        StoreUnavailableError: The store does not answer.
    """
    from harness.settings import get_settings

    settings = get_settings()
    if settings.url is not None:
        async with _client(settings) as client:
            yield client
        return
    from harness.api import LocalApi
    from harness.cli.audited import AuditedApi
    from harness.clock import SystemClock

    clock = SystemClock()
    async with open_store() as store:
        local = LocalApi(store, clock=clock, settings=settings)
        audited: Any = AuditedApi(local, store, max_entries=settings.audit_max_entries)
        yield audited


@asynccontextmanager
async def open_store() -> AsyncIterator[Store]:
    """Open the store that the settings name, for what is done to a store itself, whatever HARNESS_URL says."""
    from harness.clock import SystemClock
    from harness.settings import get_settings
    from harness.wiring import make_store

    store = make_store(get_settings(), SystemClock())
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def _client(settings: Settings) -> HarnessClient:
    from harness.client import HarnessClient

    token = None if settings.token is None else settings.token.get_secret_value()
    try:
        return HarnessClient(settings.url or "", token=token)
    except InvalidInputError as error:
        raise SettingsError(f"HARNESS_URL is not valid: {error.message}") from None


def note_that_it_is_local() -> None:
    """Say that a command looks at this machine, where HARNESS_URL could make people think otherwise."""
    from harness.settings import get_settings

    if get_settings().url is not None:
        note(
            "HARNESS_URL is set, but this command is about this machine: its settings, its store, its engine"
        )


async def find_agent(api: HarnessApi | Store, reference: str) -> Agent:
    """Return the agent with an id or a name.

    Raises:
        AgentNotFoundError: There is none.
    """
    if reference.isascii() and reference.isdigit():
        # Beyond 64 bits no store has an id, and SQLite's driver can't even ask.
        if len(reference) > 18:
            raise AgentNotFoundError(f"no agent has the id {reference[:18]}…")
        return await api.get_agent(int(reference))
    check_text(reference, what="AGENT")
    return await api.find_agent(reference)


def check_text(value: str, *, what: str) -> None:
    """Refuse an argument that is not valid in the terminal's encoding.

    Raises:
        InvalidInputError: It holds bytes that are no text.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{what} is not valid UTF-8: {value!r}") from error
