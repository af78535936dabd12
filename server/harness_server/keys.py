"""What the application holds for its routes, by typed key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from harness.scheduler import TaskScheduler
from harness.settings import Settings
from harness.wiring import Runtime
from harness_server.streams import Streams

#: Returns when a part answers, and raises `HarnessError` when it does not. Its caller bounds it in time.
Probe = Callable[[], Awaitable[object]]

SETTINGS = web.AppKey("settings", Settings)
RUNTIME = web.AppKey("runtime", Runtime)
SCHEDULER = web.AppKey("scheduler", TaskScheduler)
#: Parts that work cannot go on without, by the name that ``/readyz`` gives them.
PROBES = web.AppKey("probes", Mapping[str, Probe])
#: Answers that go on for long.
STREAMS = web.AppKey("streams", Streams)
