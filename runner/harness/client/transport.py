"""One HTTP exchange: retries where a repetition is harmless, and problem documents turned into the errors they name."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_middlewares import ClientHandlerType

from harness import errors
from harness.errors import HarnessError, InvalidInputError, Problem, ServerUnavailableError
from harness.jsontext import encode_document

#: Tries of a request that may be repeated, and the longest wait before each further one, in seconds.
TRIES = 4
BACK_OFF_SECONDS = (0.1, 0.5, 2.0)
#: Statuses that say "not now".
_NOT_NOW = frozenset({429, 502, 503, 504})
#: Longest Retry-After that is obeyed, in seconds.
_MAX_RETRY_AFTER_SECONDS = 10.0


class Transport:
    """Requests to one server, over connections that are kept."""

    def __init__(self, url: str, *, token: str | None, timeout_seconds: float) -> None:
        """Remember where the server is; `open` makes the session.

        Args:
            url: Such as ``http://127.0.0.1:8000``.
            token: Sent as a bearer token.
            timeout_seconds: Bound on one exchange, beyond what the server was asked to wait.

        Raises:
            InvalidInputError: The URL is none of HTTP.
        """
        self.url = _check_url(url)
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session; connections are made when they are needed."""
        headers = {"Accept": "application/json", "User-Agent": "agent-harness-client"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        self._session = aiohttp.ClientSession(headers=headers)

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        extra_seconds: float = 0,
        is_repeatable: bool | None = None,
    ) -> bytes:
        """Exchange a request for an answer's body.

        Args:
            method: Of HTTP.
            path: Under the server's URL.
            query: None values are left out.
            body: Rendered as JSON; None: no body.
            headers: Beyond the usual.
            extra_seconds: How long the server was asked to wait.
            is_repeatable: Whether it may be sent again when its answer is lost; None: by its method (RFC 9110, 9.2.2).

        Raises:
            HarnessError: What the server says, as the class it would have raised here.
            ServerUnavailableError: It does not answer.
        """
        if is_repeatable is None:
            is_repeatable = method in ("GET", "PUT", "DELETE")
        waits: Iterator[float] = iter(BACK_OFF_SECONDS if is_repeatable else ())
        while True:
            try:
                async with self.stream(
                    method,
                    path,
                    query=query,
                    body=body,
                    headers=headers,
                    total_seconds=extra_seconds,
                    is_repeatable=is_repeatable,
                ) as answer:
                    return await answer.read()
            except (ServerUnavailableError, aiohttp.ClientError, TimeoutError) as error:
                wait = next(waits, None)
                if wait is None:
                    raise self._unavailable(error) from error
            except HarnessError as error:
                wait = next(waits, None)
                if wait is None or error.retry_after_seconds is None:
                    raise
                wait = max(wait, error.retry_after_seconds)
            # Spread, so that many clients of one server do not come back at the same moment.
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        total_seconds: float | None = 0,
        silence_seconds: float | None = None,
        is_repeatable: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request once, and yield an answer that is no error, its body unread.

        Args:
            method: Of HTTP.
            path: Under the server's URL.
            query: None values are left out.
            body: Rendered as JSON; None: no body.
            headers: Beyond the usual.
            total_seconds: Beyond the timeout; None: it may go on for ever, as long as something comes.
            silence_seconds: How long nothing may come then; None: the timeout.
            is_repeatable: Whether it does no harm if it reaches the server twice.

        Raises:
            HarnessError: What the server says.
            InvalidInputError: JSON can't hold the body, or a query parameter is no text.
            ServerUnavailableError: It can't be reached, or something else answers there.
        """
        if self._session is None:
            raise ServerUnavailableError(
                "the client is not open; use it as: async with HarnessClient(url) as client"
            )
        timeout = aiohttp.ClientTimeout(
            total=None if total_seconds is None else self._timeout_seconds + total_seconds,
            sock_connect=self._timeout_seconds,
            sock_read=(silence_seconds or self._timeout_seconds) if total_seconds is None else None,
        )
        params = {name: _query_text(value) for name, value in (query or {}).items() if value is not None}
        content = None if body is None else encode_document(body, what="the body").encode()
        try:
            response = await self._session.request(
                method,
                self.url + path,
                params=params,
                data=content,
                headers={**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})},
                timeout=timeout,
                allow_redirects=False,
                middlewares=() if is_repeatable else (_send_once,),
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unavailable(error) from error
        async with response:
            if response.status >= 300:
                raise await self._error_of(response)
            yield response

    def _unavailable(self, error: BaseException) -> ServerUnavailableError:
        if isinstance(error, ServerUnavailableError):
            return error
        text = str(error) or f"no answer within {self._timeout_seconds:g} s"
        return ServerUnavailableError(
            f"the server at {self.url} can't be reached ({text}); check the URL and that harness serve runs there"
        )

    async def _error_of(self, response: aiohttp.ClientResponse) -> HarnessError:
        """Return the error that a problem document names."""
        try:
            problem = json.loads(await response.content.read(1024 * 1024))
            code, detail = problem["code"], problem["detail"]
            fields = tuple(Problem(item["field"], item["message"]) for item in problem.get("errors") or ())
        except (ValueError, KeyError, TypeError):
            return ServerUnavailableError(
                f"the server at {self.url} answered {response.status} {response.reason}, and not as Agent Harness does; "
                "check the URL and what stands in between"
            )
        kind = _CLASSES.get(code, HarnessError)
        error = kind(detail, problems=fields) if issubclass(kind, InvalidInputError) else kind(detail)
        error.retry_after_seconds = _retry_after_seconds(response)
        return error


async def _send_once(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from what it does when a connection is lost: it sends each PUT and DELETE a second time."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(str(error)) from error


def _all_classes(root: type[HarnessError]) -> Iterator[type[HarnessError]]:
    yield root
    for child in root.__subclasses__():
        yield from _all_classes(child)


_CLASSES = {kind.code: kind for kind in _all_classes(errors.HarnessError)}


def _retry_after_seconds(response: aiohttp.ClientResponse) -> float | None:
    if response.status not in _NOT_NOW:
        return None
    text = response.headers.get("Retry-After", "")
    return min(float(text), _MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() else 0.0


def _query_text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{text[:40]!r} holds a lone surrogate, which is no valid text") from error
    return text


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_fine = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        )
        _ = parts.port
    except ValueError:
        is_fine = False
    if not is_fine:
        raise InvalidInputError(f"{url!r} is no URL of a server; give one such as http://127.0.0.1:8000")
    return url.rstrip("/")
