"""What an endpoint is: one declaration from which requests are checked, handlers called and OpenAPI generated.

A route module writes handlers, and at its end a `routes` list that says for each its method, path, the models of its
query and body, what it answers, which errors it may give and which scope it asks for. Nothing about it is said twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from harness.api import HarnessApi
from harness.config import list_problems
from harness.errors import (
    AgentNotFoundError,
    DeadlineExceededError,
    HarnessError,
    InvalidInputError,
    NotFoundError,
    TaskNotFoundError,
    TokenNotFoundError,
    UnsupportedMediaError,
)
from harness.jsontext import decode_document
from harness.models import Model
from harness.tokens import Scope
from harness_server.auditing import AUDITOR
from harness_server.auth import GATE
from harness_server.bodies import BODIES, check_body, expect
from harness_server.keys import SETTINGS

JSON = "application/json"
#: Largest body taken, in bytes: an agent's code and files, as JSON, with every character escaped.
MAX_BODY_BYTES = 32 * 1024 * 1024
#: Largest body of an endpoint that takes a context or a state.
DOCUMENT_BODY_BYTES = 8 * 1024 * 1024
#: Largest body of any other endpoint.
SMALL_BODY_BYTES = 256 * 1024
#: SQLite's and MongoDB's largest integer, and so the largest id there can be.
_MAX_ID = 2**63 - 1

__all__ = [
    "API",
    "DOCUMENT_BODY_BYTES",
    "JSON",
    "MAX_BODY_BYTES",
    "SMALL_BODY_BYTES",
    "Answer",
    "Call",
    "Endpoint",
    "Handler",
    "NoQuery",
    "Scope",
    "empty_answer",
    "json_answer",
]

#: What an id in a path that is larger than any of its kind is answered with.
_NOT_FOUND: Mapping[str, type[NotFoundError]] = {
    "agent_id": AgentNotFoundError,
    "task_id": TaskNotFoundError,
    "token_id": TokenNotFoundError,
}

API = web.AppKey("api", HarnessApi)


class NoQuery(Model):
    """Takes no query parameters."""


QueryT = TypeVar("QueryT", bound=BaseModel)
BodyT = TypeVar("BodyT")


@dataclass(frozen=True, slots=True)
class Call(Generic[QueryT, BodyT]):
    """One request, checked."""

    request: web.Request
    query: QueryT
    body: BodyT

    @property
    def api(self) -> HarnessApi:
        """The service."""
        return self.request.app[API]

    def id(self, name: str) -> int:
        """Return an id from the path.

        Raises:
            InvalidInputError: It is no positive integer.
            NotFoundError: It is larger than any id.
        """
        text = self.request.match_info[name]
        # One way to write each id: caches and rules in front of the server then see what it sees.
        if not (text.isascii() and text.isdigit()) or text.startswith("0"):
            raise InvalidInputError(f"{name} in the path is {text[:40]!r}; give a positive integer")
        if len(text) > len(str(_MAX_ID)) or int(text) > _MAX_ID:
            kind = _NOT_FOUND.get(name, NotFoundError)
            raise kind(f"there is no {name.removesuffix('_id')} {text[:20]}{'…' * (len(text) > 20)}")
        return int(text)


Handler = Callable[[Call[Any, Any]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one status carries."""

    description: str
    model: type[BaseModel] | None = None
    media_type: str = JSON
    #: What server-sent events carry, where it may be a stream of them.
    events: tuple[type[BaseModel], ...] = ()
    #: Media types of text that it may be instead.
    also_text: tuple[str, ...] = ()
    #: Headers with their descriptions.
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    scope: Scope
    answers: Mapping[int, Answer]
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    #: A body that does something sensible, for people to begin from.
    example: Mapping[str, Any] | None = None
    #: Whether a request without a body counts as ``{}``.
    is_body_optional: bool = False
    max_body_bytes: int = SMALL_BODY_BYTES
    #: How much longer than others it may take, in seconds.
    extra_seconds: float = 0
    #: Request headers with their descriptions.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Beyond those that any endpoint may give.
    errors: tuple[type[HarnessError], ...] = ()

    def route(self) -> web.RouteDef:
        """Return what aiohttp's router takes."""
        return web.route(self.method, self.path, self._handle, expect_handler=expect)

    @property
    def name(self) -> str:
        """The handler's name, unique among all endpoints."""
        return self.handler.__name__

    @property
    def is_change(self) -> bool:
        """Whether it changes something, so that it is written down who asked for it."""
        return self.method != "GET" and self.scope > Scope.READ

    @property
    def is_stream(self) -> bool:
        """Whether its answer may go on for as long as it likes."""
        return any(answer.media_type != JSON for answer in self.answers.values())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.scope is Scope.NONE:
            return await self._answer(request)
        principal = await request.app[GATE].admit(request)

        async def work() -> web.StreamResponse:
            principal.check(self.scope)
            return await self._answer(request)

        with request.app[GATE].under_way(principal, request.transport):
            if self.is_change:
                return await request.app[AUDITOR].watch(request, principal, self.name, work)
            return await work()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        check_body(request, self.max_body_bytes)
        query = _parse_query(request, self.query)
        if self.body is None:
            return await self._call(Call(request, query, None))
        async with request.app[BODIES].reading(request, self.max_body_bytes) as raw:
            return await self._call(Call(request, query, self._parse_body(request, raw, self.body)))

    async def _call(self, call: Call[Any, Any]) -> web.StreamResponse:
        if self.is_stream:
            return await self.handler(call)
        seconds = call.request.app[SETTINGS].request_timeout_seconds + self.extra_seconds
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                return await self.handler(call)
        except TimeoutError:
            if not bound.expired():
                raise
            raise DeadlineExceededError(
                f"it took longer than {seconds:g} s and was given up; it may have taken effect, so look before you repeat it"
            ) from None

    def _parse_body(self, request: web.Request, raw: bytes, model: type[BaseModel]) -> BaseModel:
        if not raw and self.is_body_optional:
            raw = b"{}"
        elif request.content_type != JSON:
            raise UnsupportedMediaError(
                f"the body is {request.content_type}; send JSON, with the header Content-Type: {JSON}"
            )
        # Of two readings this one is exact about what JSON can hold, and the other about types.
        decode_document(raw, what="the body")
        try:
            return model.model_validate_json(raw, strict=True)
        except ValidationError as error:
            raise _invalid("the body", error) from error


def _parse_query(request: web.Request, model: type[BaseModel]) -> BaseModel:
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise InvalidInputError(f"the query parameter {name[:40]!r} is given twice; give it once")
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _invalid("the query", error) from error


def _invalid(what: str, error: ValidationError) -> InvalidInputError:
    problems = list_problems(error)
    text = "; ".join(
        f"{problem.field}: {problem.message}" if problem.field else problem.message for problem in problems
    )
    return InvalidInputError(f"{what} is not valid: {text}", problems=problems)


def json_answer(
    model: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Render a model."""
    return web.Response(
        body=model.model_dump_json().encode(),
        status=status,
        content_type=JSON,
        charset="utf-8",
        headers=headers,
    )


def empty_answer() -> web.Response:
    """Say that it is done, and that there is nothing to say about it."""
    return web.Response(status=204)
