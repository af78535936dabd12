"""Tokens: making one."""

from __future__ import annotations

from harness.errors import InvalidInputError
from harness.models import render_instant
from harness.ports import Store
from harness.tokens import CreatedToken, TokenDraft, TokenText, hash_secret, new_secret


async def create(store: Store, draft: TokenDraft) -> CreatedToken:
    """Make a token; its text is in what this returns, and nowhere else.

    Raises:
        InvalidInputError: It would have expired already.
    """
    now = await store.now()
    if draft.expires_at is not None and draft.expires_at <= now:
        raise InvalidInputError(
            f"expires_at {render_instant(draft.expires_at)} has passed already; it is {render_instant(now)}"
        )
    secret = new_secret()
    token = await store.create_token(draft, hash_secret(secret))
    return CreatedToken(token=token, text=TokenText(token.id, secret).render())
