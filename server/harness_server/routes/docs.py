"""``/api/openapi.json``: what the API is, for programs."""

from __future__ import annotations

import functools
import json

from aiohttp import web

from harness_server.endpoint import JSON
from harness_server.openapi import make_document
from harness_server.routes import ENDPOINTS


async def openapi(_request: web.Request) -> web.Response:
    """Answer the OpenAPI document."""
    return web.Response(body=_document(), content_type=JSON)


@functools.cache
def _document() -> bytes:
    return json.dumps(make_document(ENDPOINTS)).encode()


routes = [web.get("/api/openapi.json", openapi)]
