"""What an endpoint is: one declaration from which requests are checked, handlers called and OpenAPI generated.

A route module writes handlers, and at its end a `routes` list that says for each its method, path, the models of its
query and body, what it answers, which errors it may give and which scope it asks for. Nothing about it is said twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from harness.api import HarnessApi
from harness.config import list_problems
from harness.errors import (
    AgentNotFoundError,
    BodyTooLargeError,
    HarnessError,
    InvalidInputError,
    NotFoundError,
    TaskNotFoundError,
    UnsupportedMediaError,
)
from harness.jsontext import decode_document
from harness.models import Model

JSON = "application/json"
#: Largest body taken, in bytes: an agent's code and files, as JSON, with every character escaped.
MAX_BODY_BYTES = 32 * 1024 * 1024
#: SQLite's and MongoDB's largest integer, and so the largest id there can be.
_MAX_ID = 2**63 - 1

#: What an id in a path that is larger than any of its kind is answered with.
_NOT_FOUND: Mapping[str, type[NotFoundError]] = {
    "agent_id": AgentNotFoundError,
    "task_id": TaskNotFoundError,
}

API = web.AppKey("api", HarnessApi)


class Scope(IntEnum):
    """What a token may do; each includes those before it."""

    #: Needs no token.
    NONE = 0
    READ = 1
    #: Run agents, cancel and retry tasks.
    RUN = 2
    #: Change agents, schedules and handoffs; tokens and secrets.
    ADMIN = 3


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
    #: Request headers with their descriptions.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Beyond those that any endpoint may give.
    errors: tuple[type[HarnessError], ...] = ()

    def route(self) -> web.RouteDef:
        """Return what aiohttp's router takes."""
        return web.route(self.method, self.path, self._handle)

    @property
    def name(self) -> str:
        """The handler's name, unique among all endpoints."""
        return self.handler.__name__

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        query = _parse_query(request, self.query)
        body = None if self.body is None else await self._parse_body(request, self.body)
        return await self.handler(Call(request, query, body))

    async def _parse_body(self, request: web.Request, model: type[BaseModel]) -> BaseModel:
        raw = await _read(request)
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


async def _read(request: web.Request) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaError(f"the body has Content-Encoding {encoding[:40]!r}; send it as it is")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLargeError(f"the body is larger than {MAX_BODY_BYTES:,} bytes") from None


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
