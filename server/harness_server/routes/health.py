"""``/healthz`` and ``/readyz``: whether the process is up, and whether it can do its work. Outside of ``/api``, unversioned."""

from __future__ import annotations

import asyncio

from aiohttp import web

from harness.errors import HarnessError
from harness_server.keys import PROBES, Probe

#: Bound on each question of ``/readyz``, in seconds; whoever probes gives up after a few.
PROBE_TIMEOUT_SECONDS = 2.0

#: Answers are about this moment.
_HEADERS = {"Cache-Control": "no-store"}


async def healthz(_request: web.Request) -> web.Response:
    """Say that the process is up. It asks nobody, so a restart would not mend what it does not tell."""
    return web.json_response({"status": "ok"}, headers=_HEADERS)


async def readyz(request: web.Request) -> web.Response:
    """Ask the store and the engine; 503 names those that do not answer, and why."""
    probes = request.app[PROBES]
    answers = await asyncio.gather(*map(_ask, probes.values()))
    checks = dict(zip(probes, answers, strict=True))
    missing = [name for name, answer in checks.items() if answer != "ok"]
    body = {"status": "unavailable" if missing else "ready", "missing": missing, "checks": checks}
    return web.json_response(body, status=503 if missing else 200, headers=_HEADERS)


async def _ask(probe: Probe) -> str:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            await probe()
    except HarnessError as error:
        return error.message
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_SECONDS:g} s"
    return "ok"


routes = [web.get("/healthz", healthz), web.get("/readyz", readyz)]
