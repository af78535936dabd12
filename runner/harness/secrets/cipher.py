"""`SecretCipher`: AES-256-GCM under the keys of the settings (NIST SP 800-38D).

A ciphertext is ``AHS1``, the id of its key (8 bytes), a nonce (12 bytes) and what AES-GCM gives, tag included. It is
bound to the store and the name it was made for: put in another secret's place, or in another store, it does not open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import SecretDamagedError, SecretKeyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MAGIC = b"AHS1"
_KEY_BYTES = 32
_KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _KEY_ID_BYTES + _NONCE_BYTES

_KEY_REMEDY = "make one with: harness secrets keygen"


def generate_key() -> str:
    """Return a new random key, as the settings take it: 32 bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys of a setting: one or more, with commas or blanks between them.

    Raises:
        ValueError: One of them is none, or there is none at all; the message does not quote it.
    """
    keys = []
    for number, word in enumerate(filter(None, re.split(r"[,\s]+", text)), start=1):
        try:
            # Either alphabet: validation lets ``+`` and ``/`` pass beside `altchars`.
            key = base64.b64decode(word.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            key = b""
        if len(key) != _KEY_BYTES:
            raise ValueError(f"key {number} is not {_KEY_BYTES} bytes in base64; {_KEY_REMEDY}")
        keys.append(key)
    if not keys:
        raise ValueError(f"there is no key in it; {_KEY_REMEDY}")
    return tuple(keys)


def looks_encrypted(data: bytes) -> bool:
    """Whether it has the form of a ciphertext; a value in the clear has not."""
    return data.startswith(_MAGIC) and len(data) > _HEAD_BYTES + _TAG_BYTES


class SecretCipher:
    """Encrypts with the first key, decrypts with any."""

    def __init__(self, keys: Sequence[bytes], *, store_id: str) -> None:
        """Take at least one key, as `parse_keys` returns them, and the store that ciphertexts are for."""
        self._keys = {_key_id(key): key for key in keys}
        self._first = _key_id(keys[0])
        self._store_id = store_id

    def encrypt(self, name: str, value: str) -> bytes:
        """Return the ciphertext of a secret's value."""
        nonce = os.urandom(_NONCE_BYTES)
        head = _MAGIC + self._first + nonce
        return head + _aes_gcm(self._keys[self._first]).encrypt(
            nonce, value.encode(), self._bound_to(name, head)
        )

    def decrypt(self, name: str, ciphertext: bytes) -> str:
        """Return the value of a secret.

        Raises:
            SecretKeyError: It was encrypted under a key that is not here.
            SecretDamagedError: It is no ciphertext of this secret in this store.
        """
        from cryptography.exceptions import InvalidTag

        damaged = (
            f"the secret {name!r} can't be decrypted: it was changed, or belongs to another name or store"
        )
        if not looks_encrypted(ciphertext):
            raise SecretDamagedError(f"{damaged}; set it again")
        key_id = ciphertext[len(_MAGIC) :][:_KEY_ID_BYTES]
        key = self._keys.get(key_id)
        if key is None:
            raise SecretKeyError(
                f"the secret {name!r} was stored under the key {key_id.hex()}, which is none of those in "
                "HARNESS_SECRETS_KEY; add that key to them, or set the secret again"
            )
        head, rest = ciphertext[:_HEAD_BYTES], ciphertext[_HEAD_BYTES:]
        try:
            value = _aes_gcm(key).decrypt(head[-_NONCE_BYTES:], rest, self._bound_to(name, head))
        except InvalidTag:
            raise SecretDamagedError(f"{damaged}; set it again") from None
        return value.decode()

    def is_current(self, ciphertext: bytes) -> bool:
        """Whether it was encrypted under the first key."""
        return ciphertext[len(_MAGIC) :][:_KEY_ID_BYTES] == self._first

    def _bound_to(self, name: str, head: bytes) -> bytes:
        # Neither a store's id nor a secret's name holds a NUL.
        return b"\0".join((b"agent-harness secret", self._store_id.encode(), name.encode(), head))


def _key_id(key: bytes) -> bytes:
    """Return what tells keys apart and says nothing about them."""
    return hashlib.sha256(b"agent-harness key id\0" + key).digest()[:_KEY_ID_BYTES]


def _aes_gcm(key: bytes) -> AESGCM:
    # Here: OpenSSL takes longer to load than the rest of the library, and most programs keep no secrets.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
