"""Live output: an agent's bytes to this process's own standard streams, from a thread of its own.

A pipe whose reader stalls must not stall the event loop, where the lease is kept alive. What waits here is bounded by
the cap on kept output, since nothing beyond it reaches a sink.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from typing import TYPE_CHECKING, TextIO

from harness.cli.text import TerminalText

if TYPE_CHECKING:
    from harness.ports import OutputStream

    _Piece = tuple[OutputStream, bytes, bool]


class LiveOutput:
    """An `OutputSink` that prints. To a pipe or file the bytes go as they are, to a terminal made safe.

    A reader that goes away (``| head``) ends the printing to that stream and nothing else.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        """Start the thread.

        Args:
            stdout: Where the agent's standard output goes; has a file descriptor.
            stderr: Where its standard error goes; may be the same.
        """
        streams: dict[OutputStream, TextIO] = {"stdout": stdout, "stderr": stderr}
        for stream in streams.values():
            stream.flush()
        self._streams: dict[OutputStream, TextIO | None] = dict(streams)
        self._texts: dict[OutputStream, TerminalText] = {
            name: TerminalText() for name, stream in streams.items() if stream.isatty()
        }
        self._line_is_open = False
        self._queue: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._problem: OSError | None = None
        #: Whether something could not be printed since nobody reads it any more.
        self.reader_is_gone = False
        # A daemon, so that a reader who never reads can't keep the process from leaving.
        self._thread = threading.Thread(target=self._print_all, name="output", daemon=True)
        self._thread.start()

    def __call__(self, stream: OutputStream, data: bytes) -> None:
        """Take a piece; returns at once."""
        self._queue.put((stream, data, False))

    def finish(self) -> None:
        """Wait until everything is printed, and end the last line on a terminal.

        Raises:
            OSError: Something could not be printed, for another reason than a reader gone away.
        """
        for stream in self._texts:
            self._queue.put((stream, b"", True))
        self._queue.put(None)
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _print_all(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._print(*piece)
        if self._line_is_open:
            self._write(next(iter(self._texts)), b"\n")

    def _print(self, stream: OutputStream, data: bytes, final: bool) -> None:  # noqa: FBT001 - a queued piece
        text = self._texts.get(stream)
        if text is not None:
            shown = text.feed(data, final=final)
            if not shown:
                return
            self._line_is_open = not shown.endswith("\n")
            data = shown.encode(getattr(self._streams[stream], "encoding", "utf-8"), "backslashreplace")
        self._write(stream, data)

    def _write(self, stream: OutputStream, data: bytes) -> None:
        target = self._streams[stream]
        if target is None:
            return
        try:
            # Not through the stream's buffer: its lock, held by a stalled daemon thread, would break the exit.
            _write_all(target.fileno(), data)
        except BrokenPipeError:
            self._streams[stream] = None
            self.reader_is_gone = True
        except OSError as error:
            self._streams[stream] = None
            self._problem = error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # a descriptor shared with a program that made it non-blocking
            select.select([], [descriptor], [])
