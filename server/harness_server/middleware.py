"""What happens to every request on its way in and out: an id, errors as problem documents, headers."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus

from aiohttp import HttpVersion10, web
from aiohttp.typedefs import Handler

from harness.errors import HarnessError
from harness_server.auth import ALLOWANCE
from harness_server.problems import headers_of, problem_answer, status_of

logger = logging.getLogger(__name__)

#: Names a request in its answer, in problem documents and in the server's log.
REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = web.RequestKey("request_id", str)

#: Nothing that the API answers is a page; what a browser shows of it all the same must not run.
_SAFETY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@web.middleware
async def request_ids(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each request an id of our own; a client's could be anything."""
    request[REQUEST_ID] = secrets.token_hex(8)
    return await handler(request)


@web.middleware
async def check_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what is no HTTP/1: aiohttp reads a line without a version as HTTP/0.9, and a proxy in front reads it otherwise."""
    if request.version < HttpVersion10:
        raise web.HTTPBadRequest
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer has, streams included; a signal handler of the application."""
    for name, value in _SAFETY_HEADERS.items():
        response.headers.setdefault(name, value)
    if REQUEST_ID in request:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    if ALLOWANCE in request:
        response.headers.update(request[ALLOWANCE].headers())


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document (RFC 9457)."""
    try:
        return await handler(request)
    except HarnessError as error:
        status = status_of(error)
        if status >= 500:
            logger.warning(
                "%s %s: %s",
                request.method,
                request.rel_url.raw_path,
                error.message,
                extra={"action": "request_failed", "code": error.code, "request_id": request[REQUEST_ID]},
            )
        return problem_answer(
            status,
            error.code,
            error.message,
            request_id=request[REQUEST_ID],
            problems=getattr(error, "problems", ()),
            headers=headers_of(error),
        )
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _http_problem(request, error)
    except Exception:
        logger.exception(
            "%s %s failed",
            request.method,
            request.rel_url.raw_path,
            extra={"action": "request_crashed", "request_id": request[REQUEST_ID]},
        )
        text = "the server failed; its log has the details under this request_id"
        return problem_answer(500, "internal_error", text, request_id=request[REQUEST_ID])


def _http_problem(request: web.Request, error: web.HTTPException) -> web.Response:
    """Render what aiohttp itself refuses: unknown paths, wrong methods, broken requests."""
    code, headers = "http_error", None
    text = f"{HTTPStatus(error.status).phrase.lower()}: {request.method} {request.rel_url.raw_path[:200]}"
    if isinstance(error, web.HTTPNotFound):
        code, text = "no_such_path", f"there is nothing at {request.rel_url.raw_path[:200]}; see /api/docs"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        code, headers = "method_not_allowed", {"Allow": allowed}
        text = f"{request.method[:20]} is not allowed at {request.rel_url.raw_path[:200]}; use {allowed}"
    return problem_answer(error.status, code, text, request_id=request[REQUEST_ID], headers=headers)
