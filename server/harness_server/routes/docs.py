"""``/api/openapi.json``: what the API is, for programs; ``/api/docs``: the same for people, made from it in their browser.

The page is made of three small files of this package; it loads nothing from elsewhere and runs no other script.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files

from aiohttp import web

from harness_server.endpoint import JSON
from harness_server.openapi import make_document
from harness_server.routes import ENDPOINTS

#: CSP Level 3. The page's own files, requests to its own server, an empty icon, and nothing else.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


async def openapi(_request: web.Request) -> web.Response:
    """Answer the OpenAPI document."""
    return web.Response(body=_document(), content_type=JSON)


async def page(_request: web.Request) -> web.Response:
    """Answer the page."""
    return web.Response(text=_file("docs.html"), content_type="text/html", headers=_PAGE_HEADERS)


async def style(_request: web.Request) -> web.Response:
    """Answer the page's style."""
    return web.Response(text=_file("docs.css"), content_type="text/css")


async def script(_request: web.Request) -> web.Response:
    """Answer the page's script."""
    return web.Response(text=_file("docs.js"), content_type="text/javascript")


@functools.cache
def _document() -> bytes:
    return json.dumps(make_document(ENDPOINTS)).encode()


@functools.cache
def _file(name: str) -> str:
    return files("harness_server").joinpath("static", name).read_text("utf-8")


routes = [
    web.get("/api/openapi.json", openapi),
    web.get("/api/docs", page),
    web.get("/api/docs.css", style),
    web.get("/api/docs.js", script),
]
