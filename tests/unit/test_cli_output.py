from __future__ import annotations

import os
import pty
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.output import LiveOutput


class Ends:
    """Streams to write to, and the other ends of them."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self.readers = [reader for reader, _ in pairs]
        self.streams = [open(writer, "w", encoding="utf-8") for _, writer in pairs]  # noqa: PTH123, SIM115

    def output(self) -> LiveOutput:
        return LiveOutput(self.streams[0], self.streams[-1])

    def read(self, which: int) -> bytes:
        for stream in self.streams:
            stream.close()
        data = b""
        while True:
            try:
                piece = os.read(self.readers[which], 65536)
            except OSError:  # how a terminal's other end says that it was closed
                return data
            if not piece:
                return data
            data += piece

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        for reader in self.readers:
            os.close(reader)


@pytest.fixture
def pipes() -> Iterator[Ends]:
    ends = Ends([os.pipe(), os.pipe()])
    yield ends
    ends.close()


@pytest.fixture
def terminal() -> Iterator[Ends]:
    main, replica = pty.openpty()
    tty.setraw(replica)  # or it would add carriage returns
    ends = Ends([(main, replica)])
    yield ends
    ends.close()


def test_bytes_go_to_a_pipe_as_they_are(pipes: Ends) -> None:
    output = pipes.output()
    output("stdout", b"\x1b[31m\xff\r")
    output("stderr", b"oops")
    output.finish()
    assert pipes.read(0) == b"\x1b[31m\xff\r"
    assert pipes.read(1) == b"oops"


def test_both_streams_can_go_to_standard_output(pipes: Ends) -> None:
    output = LiveOutput(pipes.streams[0], pipes.streams[0])
    output("stderr", b"oops")
    output.finish()
    assert pipes.read(0) == b"oops"
    assert pipes.read(1) == b""


def test_a_terminal_gets_no_escape_sequences(terminal: Ends) -> None:
    output = terminal.output()
    output("stdout", b"\x1b]0;owned\x07\xe2")
    output("stdout", b"\x82\xac\n")
    output.finish()
    assert terminal.read(0) == "^[]0;owned^G€\n".encode()


def test_an_open_last_line_is_ended_on_a_terminal(terminal: Ends) -> None:
    output = terminal.output()
    output("stdout", b"one\n")
    output("stderr", b"two")
    output.finish()
    assert terminal.read(0) == b"one\ntwo\n"


def test_a_reader_gone_away_ends_only_its_own_stream(pipes: Ends) -> None:
    os.close(pipes.readers[0])
    output = pipes.output()
    output("stdout", b"nobody reads this")
    output("stderr", b"oops")
    output.finish()
    assert output.reader_is_gone
    assert pipes.read(1) == b"oops"
    pipes.readers[0] = os.open(os.devnull, os.O_RDONLY)


def test_a_stalled_reader_does_not_hold_up_the_sender(pipes: Ends) -> None:
    output = pipes.output()
    for _ in range(20):
        output("stdout", b"x" * 65536)  # far more than a pipe holds
    finishing = threading.Thread(target=output.finish)
    finishing.start()
    received = 0
    while received < 20 * 65536:
        received += len(os.read(pipes.readers[0], 65536))
    finishing.join()


def test_a_descriptor_that_does_not_block_gets_everything(pipes: Ends) -> None:
    os.set_blocking(pipes.streams[0].fileno(), False)
    output = pipes.output()
    output("stdout", b"x" * 500_000)
    finishing = threading.Thread(target=output.finish)
    finishing.start()
    received = 0
    while received < 500_000:
        received += len(os.read(pipes.readers[0], 65536))
    finishing.join()


def test_a_full_disk_is_reported() -> None:
    with Path("/dev/full").open("w") as full:
        output = LiveOutput(full, full)
        output("stdout", b"x")
        with pytest.raises(OSError, match="No space left"):
            output.finish()
