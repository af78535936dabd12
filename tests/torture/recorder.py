"""Notes what containers really did, from the engine's own event stream, in a thread of the test."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import docker
import docker.errors
import requests
from tests.torture.facts import ContainerSeen, EngineSeen, Sight
from tests.torture.listener import Listener

from harness.ports import SandboxLabels
from harness.sandbox.hostconfig import LABEL_OWNER, LABEL_STORE, read_labels

_ACTIONS = ("create", "start", "update", "rename", "die", "destroy")


class Recorder:
    """Started before the product, and told of every container with the store's label; outlives the engine's restarts."""

    def __init__(self, url: str, store_id: str) -> None:
        self._url = url
        self._filters = {"type": "container", "label": f"{LABEL_STORE}={store_id}"}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._record, name="recorder", daemon=True)
        self._stream: Any = None
        #: Grows while it records.
        self.sights: list[Sight] = []
        self._since = 0
        self._known: set[tuple[int, str, str]] = set()
        self._listens = threading.Event()
        #: When the engine was last known not to answer.
        self._away_at = datetime.now(UTC)
        self.listener = Listener(url)

    def start(self) -> None:
        """Begin; returns when the engine is listened to."""
        self._since = time.time_ns()
        self._thread.start()
        if not self._listens.wait(20):
            raise TimeoutError(f"the engine at {self._url} sends no events")

    def stop(self) -> None:
        """End, after what the engine has told so far."""
        time.sleep(0.5)
        self._ending.set()
        if self._stream is not None:
            self._stream.close()
        self._thread.join(20)
        self.listener.stop()

    def _record(self) -> None:
        while not self._ending.is_set():
            # Whatever an engine that dies does to the stream.
            with contextlib.suppress(
                docker.errors.DockerException, requests.RequestException, OSError, ValueError
            ):
                self._follow()
            self._away_at = datetime.now(UTC)
            time.sleep(0.05)

    def _follow(self) -> None:
        client = docker.APIClient(self._url, version="auto", timeout=10**6)
        try:
            # From the last event's second on, as what happened before the connection stood counts too.
            self._stream = client.events(since=self._since // 10**9, filters=self._filters, decode=True)
            if self._listens.is_set():
                listed = client.containers(filters={"label": self._filters["label"]})
                running = frozenset(str(entry["Id"]) for entry in listed)
                self.sights.append(EngineSeen(running, self._away_at))
            self._listens.set()
            for event in self._stream:
                self._take(event)
        finally:
            client.close()

    def _take(self, event: Mapping[str, Any]) -> None:
        actor = event["Actor"]
        key = (event["timeNano"], event["Action"], actor["ID"])
        if event["Action"] not in _ACTIONS or key in self._known:
            return
        self._known.add(key)
        self._since = max(self._since, event["timeNano"])
        if event["Action"] == "start":
            self.listener.listen(actor["ID"])
        attributes = actor["Attributes"]
        labels = read_labels(attributes, attributes["name"])
        attempt = (labels.task_id, labels.fence) if isinstance(labels, SandboxLabels) else None
        at = datetime.fromtimestamp(event["timeNano"] / 1e9, UTC)
        self.sights.append(
            ContainerSeen(event["Action"], actor["ID"], attempt, attributes.get(LABEL_OWNER), at)
        )
