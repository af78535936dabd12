"""Problem documents (RFC 9457), and the one table from errors to statuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from aiohttp import web
from pydantic import BaseModel

from harness.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    EngineUnavailableError,
    HarnessError,
    ImageMissingError,
    InvalidInputError,
    LeaseLostError,
    NotFoundError,
    PermissionDeniedError,
    Problem,
    RateLimitedError,
    RequestTimeoutError,
    SecretKeyError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
    UnsupportedMediaError,
    VersionConflictError,
)

PROBLEM_JSON = "application/problem+json"

#: The first class that an error is an instance of decides; anything else is a 500.
STATUS_BY_ERROR: tuple[tuple[type[HarnessError], int], ...] = (
    (AuthenticationError, 401),
    (PermissionDeniedError, 403),
    (RateLimitedError, 429),
    (RequestTimeoutError, 408),
    (DeadlineExceededError, 504),
    (BodyTooLargeError, 413),
    (UnsupportedMediaError, 415),
    (InvalidInputError, 422),
    (NotFoundError, 404),
    (VersionConflictError, 412),
    (ConflictError, 409),
    (SecretKeyError, 409),
    (LeaseLostError, 409),
    (StoreUnavailableError, 503),
    (EngineUnavailableError, 503),
    (ImageMissingError, 503),
    (StoreError, 500),
)

#: Headers that go with an error (RFC 9110, sections 11.6.1 and 10.2.3).
_HEADERS_BY_ERROR: Mapping[type[HarnessError], Mapping[str, str]] = {
    AuthenticationError: {"WWW-Authenticate": 'Bearer realm="agent-harness"'},
    StoreUnavailableError: {"Retry-After": "2"},
    StoreBusyError: {"Retry-After": "1"},
    EngineUnavailableError: {"Retry-After": "5"},
}


class FieldProblem(BaseModel):
    """What is wrong with one value."""

    #: Path of the value, such as ``config.limits.cpus``; empty when it is the whole.
    field: str
    #: What is wrong with it.
    message: str


class ProblemDocument(BaseModel):
    """Why a request was refused or failed."""

    #: A URI that stands for the code; nothing is found there.
    type: str
    #: The status in words.
    title: str
    #: The status of the answer.
    status: int
    #: What happened, the value at fault and what to do.
    detail: str
    #: Stable; what programs look at.
    code: str
    #: Find it in the server's log by this.
    request_id: str
    #: For input that is not valid: each value at fault, by its path.
    errors: list[FieldProblem] | None = None


def status_of(error: HarnessError) -> int:
    """Return the status that stands for an error."""
    return status_of_type(type(error))


def status_of_type(kind: type[HarnessError]) -> int:
    """Return the status that stands for a class of errors."""
    return next((status for known, status in STATUS_BY_ERROR if issubclass(kind, known)), 500)


def headers_of(error: HarnessError) -> Mapping[str, str] | None:
    """Return the headers that go with an error."""
    if isinstance(error, RateLimitedError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    return _HEADERS_BY_ERROR.get(type(error))


def problem_answer(
    status: int,
    code: str,
    detail: str,
    *,
    request_id: str,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Render a problem document."""
    document: dict[str, object] = {
        "type": f"urn:agent-harness:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    if problems:
        document["errors"] = [{"field": problem.field, "message": problem.message} for problem in problems]
    # ASCII alone: what was refused may be no valid text.
    body = json.dumps(document).encode()
    return web.Response(body=body, status=status, content_type=PROBLEM_JSON, headers=headers)
