"""Checks of secrets, and secrets from plain documents, shared by both stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import InvalidInputError, SecretNotFoundError
from harness.secrets.cipher import looks_encrypted
from harness.secrets.info import SecretInfo
from harness.secrets.rules import MAX_VALUE_BYTES
from harness.store.documents import readable

#: Bound on one ciphertext, in bytes: a value of the largest size, and room for what goes with it.
MAX_CIPHERTEXT_BYTES = MAX_VALUE_BYTES + 1024


def check_ciphertext(ciphertext: bytes) -> None:
    """Refuse what is no ciphertext: it could be the value itself.

    Raises:
        InvalidInputError: It is none, or too large.
    """
    if not looks_encrypted(ciphertext):
        raise InvalidInputError(
            "a secret is stored encrypted, and this is no ciphertext of harness.secrets.cipher"
        )
    if len(ciphertext) > MAX_CIPHERTEXT_BYTES:
        raise InvalidInputError(
            f"a secret's ciphertext is {len(ciphertext):,} bytes, more than the limit of {MAX_CIPHERTEXT_BYTES:,}"
        )


def secret_from(document: Mapping[str, Any]) -> SecretInfo:
    """Return what is known of the secret of a plain document."""
    return readable(
        "secret",
        document["name"],
        lambda: SecretInfo.model_validate({name: document[name] for name in SecretInfo.model_fields}),
    )


def no_secret(name: str) -> SecretNotFoundError:
    """Return the error for a secret that is not there."""
    return SecretNotFoundError(f"there is no secret {name!r}")
