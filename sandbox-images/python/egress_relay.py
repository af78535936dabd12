"""The way out of a sandbox: carries connections to 127.0.0.1:3128 over stdin and stdout to the runner, which decides.

It runs in a container of its own that shares nothing but the loopback with the agent's, so the agent can talk to it and
not touch it. It knows no rules and reads nothing of what it carries. The frames are described, and parsed, in
``harness/egress/frames.py``; change both together. It ends when its stdin does, as it does with its runner.

All it holds is bounded: `MAX_CONNECTIONS` times a window in each direction, and `MAX_OUT_BYTES` besides. It always reads
from the runner, who never sends more than windows, so the two can't come to wait for each other.
"""

import os
import select
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = ("127.0.0.1", 3128)
MAX_CONNECTIONS = 64
#: Connections taken at once after a while without any, and each second in the long run. The runner looks at no more, and
#: what waits for it here could not be forgotten when its program is gone.
OPEN_BURST = 64
OPENS_PER_SECOND = 100.0
CHUNK_BYTES = 16 * 1024
WINDOW_BYTES = 64 * 1024
#: Of the system for each direction of a connection; Linux takes twice as much. With less than two of the loopback's
#: segments of 64 KiB in it a sender waits for delayed acknowledgements: 4 MiB a second instead of 50.
BUFFER_BYTES = 128 * 1024
#: Read from the runner, and written to it, at once.
OUT_BYTES = 64 * 1024
HEADER_BYTES = 7
#: While more than this waits for the runner, nothing is taken from programs.
MAX_OUT_BYTES = 256 * 1024

READ = select.EPOLLIN | select.EPOLLHUP
WRITE = select.EPOLLOUT


class Connection:
    """A program's connection."""

    def __init__(self, number: int, made: socket.socket) -> None:
        self.number = number
        self.socket = made
        #: What the program is still to be given.
        self.waiting = bytearray()
        #: How much more of what it sends may be passed on.
        self.credit = WINDOW_BYTES
        #: Whether the program, and the runner, have sent all.
        self.has_ended = self.is_answered = False
        self.events = 0


class Relay:
    """Carries bytes between a listening socket and the runner."""

    def __init__(self, listener: socket.socket, stdin: int, stdout: int) -> None:
        self.listener = listener
        self.stdin = stdin
        self.stdout = stdout
        self.connections: dict[int, Connection] = {}
        self.by_file: dict[int, Connection] = {}
        self.last_number = 0
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.poll = select.epoll()
        self.poll.register(stdin, READ)
        self.events = {listener.fileno(): 0, stdout: 0}
        self.runs = True
        self.opens = float(OPEN_BURST)
        self.counted_at = time.monotonic()

    def run(self) -> None:
        """Carry, until the runner is gone."""
        self.send(b"R", 0)
        while self.runs:
            for file, events in self.poll.poll(self.look_for()):
                if file == self.stdin:
                    self.read_frames()
                elif file == self.stdout:
                    self.write_frames()
                elif file == self.listener.fileno():
                    self.accept()
                elif file in self.by_file:
                    self.serve(self.by_file[file], events)

    def look_for(self) -> float | None:
        """Tell the system what is waited for; return for how long, in seconds."""
        now = time.monotonic()
        self.opens = min(OPEN_BURST, self.opens + (now - self.counted_at) * OPENS_PER_SECOND)
        self.counted_at = now
        has_room = len(self.outgoing) < MAX_OUT_BYTES
        takes = has_room and len(self.connections) < MAX_CONNECTIONS
        self.want(self.stdout, WRITE if self.outgoing else 0)
        self.want(self.listener.fileno(), READ if takes and self.opens >= 1 else 0)
        for connection in self.connections.values():
            reads = has_room and connection.credit > 0 and not connection.has_ended
            events = (READ if reads else 0) | (WRITE if connection.waiting else 0)
            if events != connection.events:
                self.poll_for(connection.socket.fileno(), connection.events, events)
                connection.events = events
        return (1 - self.opens) / OPENS_PER_SECOND if takes and self.opens < 1 else None

    def want(self, file: int, events: int) -> None:
        """Wait for these events of a file."""
        if self.events[file] != events:
            self.poll_for(file, self.events[file], events)
            self.events[file] = events

    def poll_for(self, file: int, before: int, events: int) -> None:
        """Change what is waited for; a file of which nothing is waited for would still report its hang-up."""
        if not before:
            self.poll.register(file, events)
        elif not events:
            self.poll.unregister(file)
        else:
            self.poll.modify(file, events)

    def send(self, kind: bytes, number: int, payload: bytes = b"") -> None:
        """Have a frame wait for the runner."""
        self.outgoing += kind + number.to_bytes(4, "big") + len(payload).to_bytes(2, "big") + payload

    def write_frames(self) -> None:
        """Give the runner as much as it takes."""
        sent = put(lambda: os.write(self.stdout, self.outgoing[:OUT_BYTES]))
        self.runs = self.runs and sent >= 0
        del self.outgoing[: max(sent, 0)]

    def read_frames(self) -> None:
        """Do what the runner says."""
        data = take(lambda: os.read(self.stdin, OUT_BYTES))
        if not data:
            self.runs = self.runs and data is None
            return
        incoming = self.incoming
        incoming += data
        at = 0
        while len(incoming) - at >= HEADER_BYTES:
            end = at + HEADER_BYTES + int.from_bytes(incoming[at + 5 : at + 7], "big")
            if end > len(incoming):
                break
            connection = self.connections.get(int.from_bytes(incoming[at + 1 : at + 5], "big"))
            if connection is not None:
                self.obey(connection, incoming[at : at + 1], bytes(incoming[at + HEADER_BYTES : end]))
            at = end
        del incoming[:at]

    def obey(self, connection: Connection, kind: bytearray, payload: bytes) -> None:
        """Carry out one frame."""
        if kind == b"D":
            connection.waiting += payload
        elif kind == b"A":
            connection.credit += int.from_bytes(payload, "big")
        elif kind == b"E":
            connection.is_answered = True
            self.finish(connection)
        elif kind == b"C":
            self.drop(connection)

    def accept(self) -> None:
        """Take a program's connection."""
        try:
            made, _ = self.listener.accept()
        except OSError:
            return  # it is gone again
        made.settimeout(0)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.opens -= 1
        self.last_number += 1
        connection = Connection(self.last_number, made)
        self.connections[connection.number] = connection
        self.by_file[made.fileno()] = connection
        self.send(b"O", connection.number)

    def serve(self, connection: Connection, events: int) -> None:
        """Read from a program and write to it."""
        if connection.waiting and events & (WRITE | select.EPOLLERR | select.EPOLLHUP):
            sent = put(lambda: connection.socket.send(connection.waiting))
            if sent < 0:
                self.cut(connection)
                return
            if sent:
                del connection.waiting[:sent]
                self.send(b"A", connection.number, sent.to_bytes(4, "big"))
                self.finish(connection)
        if connection.events & READ and events & ~WRITE and connection.number in self.connections:
            data = take(lambda: connection.socket.recv(min(CHUNK_BYTES, connection.credit)))
            if data:
                connection.credit -= len(data)
                self.send(b"D", connection.number, data)
            elif data is not None:
                connection.has_ended = True
                self.send(b"E", connection.number)
                self.finish(connection)

    def finish(self, connection: Connection) -> None:
        """End what has come to its end."""
        if not connection.is_answered or connection.waiting:
            return
        if connection.has_ended:
            self.drop(connection)
            return
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut(connection)

    def cut(self, connection: Connection) -> None:
        """End a connection whose program is gone."""
        self.send(b"C", connection.number)
        self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection.events:
            self.poll.unregister(connection.socket.fileno())
        del self.by_file[connection.socket.fileno()]
        del self.connections[connection.number]
        connection.socket.close()


def take(read: "Callable[[], bytes]") -> bytes | None:
    """Return what was read; nothing where the other side is gone, None where there is nothing yet."""
    try:
        return read()
    except BlockingIOError:
        return None
    except OSError:
        return b""


def put(write: "Callable[[], int]") -> int:
    """Return how much was written; -1 where the other side is gone."""
    try:
        return write()
    except BlockingIOError:
        return 0
    except OSError:
        return -1


def main() -> None:
    """Listen, and carry."""
    listener = socket.create_server(ADDRESS, backlog=MAX_CONNECTIONS)
    # Connections have these as well. On some kernels they count as memory of the container, which has little.
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, buffer, BUFFER_BYTES)
    listener.settimeout(0)
    os.set_blocking(0, False)
    os.set_blocking(1, False)
    Relay(listener, 0, 1).run()


if __name__ == "__main__":
    main()
