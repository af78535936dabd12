"""``/api/secrets``: what agents need and nobody may read. A value comes in and never goes out."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import PageQuery, SecretPage, SecretRequest
from harness.errors import SecretKeyError, SecretNotFoundError
from harness.secrets.info import SecretInfo
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, Scope, empty_answer, json_answer


async def list_secrets(call: Call[PageQuery, None]) -> web.Response:
    """List secrets by name: when each was made and last set, and never its value."""
    page = await call.api.list_secrets(limit=call.query.limit, offset=call.query.offset)
    return json_answer(SecretPage.of(page))


async def put_secret(call: Call[NoQuery, SecretRequest]) -> web.Response:
    """Store a secret, or give it another value. Runs that have begun keep the old one."""
    stored = await call.api.put_secret(_name(call), call.body.value)
    return json_answer(stored)


async def delete_secret(call: Call[NoQuery, None]) -> web.Response:
    """Delete a secret. Runs of agents that name it fail from now on."""
    await call.api.delete_secret(_name(call))
    return empty_answer()


def _name(call: Call[NoQuery, SecretRequest] | Call[NoQuery, None]) -> str:
    return call.request.match_info["secret_name"]


_PATH = "/api/secrets/{secret_name}"

routes = [
    Endpoint(
        method="GET",
        path="/api/secrets",
        handler=list_secrets,
        scope=Scope.ADMIN,
        query=PageQuery,
        answers={200: Answer("One page.", SecretPage)},
    ),
    Endpoint(
        method="PUT",
        path=_PATH,
        handler=put_secret,
        scope=Scope.ADMIN,
        body=SecretRequest,
        example={"value": "correct horse battery staple"},
        answers={200: Answer("What is known of it.", SecretInfo)},
        errors=(SecretKeyError,),
    ),
    Endpoint(
        method="DELETE",
        path=_PATH,
        handler=delete_secret,
        scope=Scope.ADMIN,
        answers={204: Answer("It is deleted.")},
        errors=(SecretNotFoundError,),
    ),
]
