"""The wire format between a runner and a relay. Bytes in, frames out; no I/O.

Both ways, over the relay's stdin and stdout: a kind, one byte; the number of a connection, 4 bytes; the payload's length,
2 bytes, both big-endian; the payload.

* ``R`` ready (relay to runner, once, first, connection 0): it listens.
* ``O`` open (relay to runner): a program connected. Connections are numbered 1, 2, 3 …
* ``D`` data, 1 to `MAX_PAYLOAD_BYTES` bytes.
* ``A`` acknowledge: 4 bytes, how many more bytes of that connection were taken over and may be replaced by others. At most
  `WINDOW_BYTES` may be under way in one direction of a connection.
* ``E`` end: the sender of it sends no more data on that connection. After both ends it is over.
* ``C`` cut: it is over now, in both directions. What was under way is thrown away.

Frames of a connection that is over may still be under way, and are ignored. The other end is
``sandbox-images/python/egress_relay.py``; change both together.
"""

from __future__ import annotations

from dataclasses import dataclass

READY, OPEN, DATA, ACK, END, CUT = b"R", b"O", b"D", b"A", b"E", b"C"

HEADER_BYTES = 7
MAX_PAYLOAD_BYTES = 16 * 1024
#: Bytes of one direction of one connection that may be under way.
WINDOW_BYTES = 64 * 1024

_LENGTHS = {
    READY: range(1),
    OPEN: range(1),
    DATA: range(1, MAX_PAYLOAD_BYTES + 1),
    ACK: range(4, 5),
    END: range(1),
    CUT: range(1),
}


class BadFrameError(ValueError):
    """A frame that no relay of ours sends."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: bytes
    connection: int
    payload: bytes = b""


def encode(kind: bytes, connection: int, payload: bytes = b"") -> bytes:
    """Encode a frame; the payload has at most `MAX_PAYLOAD_BYTES`."""
    return kind + connection.to_bytes(4, "big") + len(payload).to_bytes(2, "big") + payload


def encode_ack(connection: int, count: int) -> bytes:
    """Encode the acknowledgement of so many bytes."""
    return encode(ACK, connection, count.to_bytes(4, "big"))


class Decoder:
    """Cuts a stream of bytes into frames. What it holds is never more than one frame and what was fed last."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._data += data

    def take(self) -> Frame | None:
        """Return the next frame; None: it has not come to its end.

        Raises:
            BadFrameError: There is no such frame.
        """
        data = self._data
        if not data:
            return None
        kind = bytes(data[:1])
        if kind not in _LENGTHS:
            raise BadFrameError(f"a frame of the kind {kind!r}")
        if len(data) < HEADER_BYTES:
            return None
        length = int.from_bytes(data[5:7], "big")
        if length not in _LENGTHS[kind]:
            raise BadFrameError(f"a frame of the kind {kind!r} with {length} bytes")
        end = HEADER_BYTES + length
        if len(data) < end:
            return None
        frame = Frame(kind, int.from_bytes(data[1:5], "big"), bytes(data[HEADER_BYTES:end]))
        del data[:end]
        return frame
