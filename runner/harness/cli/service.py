"""Programs that run until they are told to stop: ``harness runner``, and ``harness serve`` of the server's package.

The first SIGTERM, SIGINT or SIGHUP asks the program to stop: it takes no more work and lets runs end. The second one cuts
that short. The third leaves at once; what is left behind then, other runners' sweeps clean up after the leases.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from harness.cli.servicelog import LogFormat, service_log
from harness.cli.session import exit_code
from harness.errors import HarnessError

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MaxConcurrentOption = Annotated[
    int,
    typer.Option("--max-concurrent", metavar="N", min=1, max=1000, help="Runs at a time, in this process."),
]
DrainOption = Annotated[
    float,
    typer.Option(
        "--drain-seconds",
        metavar="SECONDS",
        min=0,
        max=86400,
        help="How long a stop waits for runs to end, before it stops them and hands their tasks back.",
    ),
]
LogFormatOption = Annotated[LogFormat, typer.Option("--log-format", help="How a line of the log looks.")]


class StopRequest:
    """What the signals have asked for so far."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._received: list[signal.Signals] = []
        self._main: asyncio.Task[None] | None = None
        self._is_up = False

    @property
    def exit_code(self) -> int:
        """0 after a stop that was given its time; 128 and the signal's number after one that was cut short."""
        return 128 + self._received[1] if len(self._received) > 1 else 0

    async def wait(self) -> None:
        """Say that the program is up, and wait until it is to stop."""
        self._is_up = True
        await self._asked.wait()

    @contextmanager
    def listening(self, main: asyncio.Task[None]) -> Iterator[None]:
        """Take signals within the block; `main` is cancelled by the second one, or by the first while it starts."""
        self._main = main
        loop = asyncio.get_running_loop()
        # By nohup, or a shell that runs us in the background.
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in taken:
            loop.add_signal_handler(number, self._receive, number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    def _receive(self, number: signal.Signals) -> None:
        assert self._main is not None
        self._received.append(number)
        extra = {"action": "stopping", "signal": number.name}
        if len(self._received) == 1:
            logger.info("%s: stopping; once more stops at once", number.name, extra=extra)
            self._asked.set()
            if not self._is_up:
                self._main.cancel()
        elif len(self._received) == 2:
            logger.warning("%s again: killing containers, handing tasks back", number.name, extra=extra)
            self._main.cancel()
        else:
            # Threads may hang in a call to a mute engine, and the interpreter would wait for them.
            os._exit(128 + number)


def run_service(work: Callable[[StopRequest], Coroutine[None, None, None]], log_format: LogFormat) -> None:
    """Run a program until it is told to stop, with its log on standard error.

    Args:
        work: Starts, awaits `StopRequest.wait`, and cleans up. Cancelled, it cleans up at once.
        log_format: How a line of the log looks.

    Raises:
        typer.Exit: A stop was cut short, or the program could not start; with the exit code.
    """
    with service_log(log_format):
        try:
            _warn_of_url()
            code = asyncio.run(_run(work))
        except HarnessError as error:
            # Into the log, like everything else that whoever looks after it will read.
            logger.error("%s", error.message, extra={"action": "failed", "code": error.code})
            code = exit_code(error)
    if code:
        raise typer.Exit(code)


def _warn_of_url() -> None:
    from harness.settings import get_settings

    if get_settings().url is not None:
        text = "HARNESS_URL is set, but this process works on the store and the engine that its other settings name"
        logger.warning(text, extra={"action": "url_ignored"})


async def _run(work: Callable[[StopRequest], Coroutine[None, None, None]]) -> int:
    request = StopRequest()
    running = asyncio.create_task(work(request))
    with request.listening(running):
        await asyncio.wait([running])
    if not running.cancelled():
        running.result()
    logger.info("stopped", extra={"action": "stopped"})
    return request.exit_code
