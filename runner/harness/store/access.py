"""Tokens and lines of the audit log to plain documents and back, shared by both stores."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from harness.audit import AuditDraft, AuditEntry
from harness.errors import InvalidInputError, TokenNotFoundError
from harness.store.documents import clean_text, readable, whole_millis
from harness.tokens import TOUCH_SECONDS, ApiToken, TokenDraft

#: Lines of the audit log between two deletions of the oldest.
AUDIT_BATCH = 100

#: Characters of a SHA-256 in hexadecimal.
_HASH_CHARACTERS = 64


def token_document(draft: TokenDraft, secret_hash: str, now: datetime) -> dict[str, Any]:
    """Return a new token as a plain document without its id.

    Raises:
        InvalidInputError: The hash is none; it could be the secret itself.
    """
    if len(secret_hash) != _HASH_CHARACTERS or not set(secret_hash) <= set("0123456789abcdef"):
        raise InvalidInputError("the hash of a token's secret is no SHA-256 in hexadecimal")
    return {
        "name": clean_text(draft.name),
        "scope": draft.scope,
        "secret_hash": secret_hash,
        "created_at": now,
        "expires_at": None if draft.expires_at is None else whole_millis(draft.expires_at),
        "last_used_at": None,
        "revoked_at": None,
    }


def token_from(document: Mapping[str, Any]) -> ApiToken:
    """Return the token of a plain document."""
    return readable(
        "token",
        document["id"],
        lambda: ApiToken.model_validate({name: document[name] for name in ApiToken.model_fields}),
    )


def stale_before(now: datetime) -> datetime:
    """Return the instant before which a token's last use is noted anew."""
    return now - timedelta(seconds=TOUCH_SECONDS)


def no_token(token_id: int) -> TokenNotFoundError:
    """Return the error for a token that is not there."""
    return TokenNotFoundError(f"there is no token {token_id}")


def audit_document(draft: AuditDraft, now: datetime) -> dict[str, Any]:
    """Return a line of the audit log as a plain document without its id."""
    fields = draft.model_dump()
    return {"at": now} | {
        name: clean_text(value) if isinstance(value, str) else value for name, value in fields.items()
    }


def audit_from(document: Mapping[str, Any]) -> AuditEntry:
    """Return the line of a plain document."""
    return readable(
        "line of the audit log",
        document["id"],
        lambda: AuditEntry.model_validate({name: document[name] for name in AuditEntry.model_fields}),
    )


def check_audit_bound(max_entries: int) -> None:
    """Refuse to keep no line at all.

    Raises:
        InvalidInputError: Naming the number.
    """
    if max_entries < 1:
        raise InvalidInputError(f"max_entries must be 1 or more, got {max_entries}")
