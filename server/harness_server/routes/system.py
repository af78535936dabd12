"""``/api/system``: the machine that the server runs on."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import SystemResources
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, Scope, json_answer


async def show_resources(call: Call[NoQuery, None]) -> web.Response:
    """Get what the server's machine has of memory and processors, and how much of it is free."""
    return json_answer(await call.api.system_resources())


routes = [
    Endpoint(
        method="GET",
        path="/api/system/resources",
        handler=show_resources,
        scope=Scope.READ,
        answers={200: Answer("The machine.", SystemResources)},
    ),
]
