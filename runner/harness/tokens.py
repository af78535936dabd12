"""Bearer tokens: their text, what of it is stored, and what it lets its holder do.

A token reads ``agh_<id>_<secret><checksum>``: a prefix that scanners of repositories look for, the number that it is
stored under, 256 random bits and a CRC-32 of all before it, the last two in base 62, so that a double click marks it
whole. The checksum tells a mistyped or made-up token from a real one without asking anybody; it protects nothing.

Stored is the SHA-256 of the secret. A slow hash with a salt, as passwords need it, would buy nothing: 256 random bits
are not found by trying, however fast one can try, and no two are the same; but every request would pay for it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator

from harness.models import Instant, Model

PREFIX = "agh"
#: Bound on a token's text. An id takes 19 digits at most.
MAX_TOKEN_CHARACTERS = 80
#: How fresh a token's `last_used_at` is, so that reading stays reading.
TOUCH_SECONDS = 60.0

_DIGITS = string.digits + string.ascii_letters
_SECRET_BYTES = 32
#: Digits that hold any number of so many bytes.
_SECRET_DIGITS = 43
_CHECKSUM_DIGITS = 6
_FORM = re.compile(
    rf"{PREFIX}_([1-9][0-9]{{0,18}})_([0-9A-Za-z]{{{_SECRET_DIGITS}}})([0-9A-Za-z]{{{_CHECKSUM_DIGITS}}})"
)

ScopeName = Literal["read", "run", "admin"]


class Scope(IntEnum):
    """What a token may do; each includes those before it."""

    #: Needs no token.
    NONE = 0
    READ = 1
    #: Run agents, cancel and retry tasks.
    RUN = 2
    #: Change agents, schedules and handoffs; tokens and secrets.
    ADMIN = 3

    @classmethod
    def of(cls, name: ScopeName) -> Self:
        """Return the scope of that name."""
        return cls[name.upper()]


class TokenDraft(Model):
    """What somebody wants a token for."""

    #: For people; several tokens may have one name, as while one takes the place of another.
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    #: What it may do: ``read`` looks, ``run`` also runs and cancels, ``admin`` does everything.
    scope: ScopeName
    #: None: it does not expire.
    expires_at: Instant | None = None

    @field_validator("name")
    @classmethod
    def _name_is_printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError("a name has no control characters and no blanks at its ends")
        if name.isdigit():
            raise ValueError("a name of digits only would be taken for an id; add a letter")
        return name


class ApiToken(Model):
    """What is known of a token; neither its text nor a hash of it."""

    id: int
    #: For people.
    name: str
    #: What it may do.
    scope: ScopeName
    created_at: Instant
    #: When it becomes invalid; null: never.
    expires_at: Instant | None = None
    #: To the minute.
    last_used_at: Instant | None = None
    #: When it was made invalid.
    revoked_at: Instant | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class CreatedToken(Model):
    """A new token, with its text, which is shown this once."""

    #: What can be looked up of it later.
    token: ApiToken
    #: What to send as ``Authorization: Bearer …``. Out of `repr`, so that no log gets it by accident.
    text: Annotated[str, Field(repr=False)]


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token's text, taken apart; whether it is valid only the store knows."""

    token_id: int
    #: Out of `repr`, as above.
    secret: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a text; None when nothing of the kind was ever handed out."""
        found = _FORM.fullmatch(text) if len(text) <= MAX_TOKEN_CHARACTERS else None
        if found is None or int(found[1]) >= 2**63 or found[3] != _checksum(text[:-_CHECKSUM_DIGITS]):
            return None
        return cls(int(found[1]), found[2])

    def render(self) -> str:
        """Return the text."""
        body = f"{PREFIX}_{self.token_id}_{self.secret}"
        return body + _checksum(body)

    def matches(self, stored_hash: str) -> bool:
        """Whether that is the hash of its secret; takes as long for one that is as for one that is not."""
        return hmac.compare_digest(hash_secret(self.secret), stored_hash)


def new_secret() -> str:
    """Return what nobody can guess."""
    return _base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_DIGITS)


def hash_secret(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_DIGITS)


def _base62(number: int, width: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits.rjust(width, _DIGITS[0])
