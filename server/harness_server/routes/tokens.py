"""``/api/tokens``: who may do what."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import PageQuery, TokenPage
from harness.errors import TokenNotFoundError
from harness.tokens import ApiToken, CreatedToken, Scope, TokenDraft
from harness_server.endpoint import Answer, Call, Endpoint, NoQuery, json_answer


async def create_token(call: Call[NoQuery, TokenDraft]) -> web.Response:
    """Make a token. Its text is in this answer, and can't be had again. From the first one on, tokens are asked for."""
    made = await call.api.create_token(call.body)
    return json_answer(made, status=201, headers={"Location": f"/api/tokens/{made.token.id}"})


async def list_tokens(call: Call[PageQuery, None]) -> web.Response:
    """List tokens, the newest first, those included that have expired or were revoked."""
    page = await call.api.list_tokens(limit=call.query.limit, offset=call.query.offset)
    return json_answer(TokenPage.of(page))


async def revoke_token(call: Call[NoQuery, None]) -> web.Response:
    """Make a token invalid from now on, on every server of the store."""
    return json_answer(await call.api.revoke_token(call.id("token_id")))


routes = [
    Endpoint(
        method="POST",
        path="/api/tokens",
        handler=create_token,
        scope=Scope.ADMIN,
        body=TokenDraft,
        example={"name": "ci", "scope": "run"},
        answers={
            201: Answer(
                "The token, and its text.", CreatedToken, headers={"Location": "Where it is revoked."}
            )
        },
    ),
    Endpoint(
        method="GET",
        path="/api/tokens",
        handler=list_tokens,
        scope=Scope.ADMIN,
        query=PageQuery,
        answers={200: Answer("One page of tokens.", TokenPage)},
    ),
    Endpoint(
        method="DELETE",
        path="/api/tokens/{token_id}",
        handler=revoke_token,
        scope=Scope.ADMIN,
        answers={200: Answer("The token, now invalid.", ApiToken)},
        errors=(TokenNotFoundError,),
    ),
]
