"""Hears what containers print, by attachments of the test's own: what the product loses, or keeps to itself, counts too.

An attachment to stdout alone leaves a container as it is: its stdin belongs to whoever attached to that. Of one that has
to begin at once, the first words may come before the attachment does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import defaultdict
from urllib.parse import urlsplit


class Listener:
    """One thread for each container that runs."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._written: defaultdict[str, bytearray] = defaultdict(bytearray)
        self._threads: dict[str, threading.Thread] = {}
        self._connections: dict[str, socket.socket] = {}

    def listen(self, container_id: str) -> None:
        """Hear a container that has started."""
        thread = threading.Thread(target=self._hear, args=(container_id,), name="listener", daemon=True)
        self._threads[container_id] = thread
        thread.start()

    def stop(self) -> None:
        """Hear no more."""
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads.values():
            thread.join(20)

    def heard(self) -> dict[str, str]:
        """Return what each container wrote to stdout, the product's own frames included."""
        return {
            container_id: data.decode(errors="replace") for container_id, data in list(self._written.items())
        }

    def _hear(self, container_id: str) -> None:
        # Whatever an engine that dies does to the connection.
        with contextlib.suppress(OSError), self._connect() as connection:
            self._connections[container_id] = connection
            try:
                self._read(container_id, connection)
            finally:
                del self._connections[container_id]

    def _connect(self) -> socket.socket:
        if self._url.scheme != "unix":
            return socket.create_connection((self._url.hostname or "localhost", self._url.port or 2375))
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._url.path)
        except OSError:
            connection.close()
            raise
        return connection

    def _read(self, container_id: str, connection: socket.socket) -> None:
        connection.sendall(
            f"POST /containers/{container_id}/attach?stream=1&stdout=1 HTTP/1.1\r\n"
            "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
        )
        with connection.makefile("rb") as stream:
            status = stream.readline()
            if b" 101 " not in status:
                return  # It is gone already.
            while stream.readline().strip():
                pass
            # Frames: stream, three zeros, big-endian length (Docker Engine API, ContainerAttach).
            while len(head := stream.read(8)) == 8:
                self._written[container_id] += stream.read(int.from_bytes(head[4:], "big"))
