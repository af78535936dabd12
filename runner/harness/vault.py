"""`SecretVault`: secrets by name, encrypted on their way into a store and decrypted for a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.errors import InvalidInputError, SecretKeyError, SecretNotFoundError
from harness.models import Page
from harness.ports import Store
from harness.secrets.cipher import SecretCipher, parse_keys
from harness.secrets.info import SecretInfo
from harness.secrets.rules import check_secret_name, check_secret_value
from harness.settings import Settings

#: Largest key file, in bytes.
_MAX_KEY_FILE_BYTES = 64 * 1024
_PAGE = 100


class SecretVault:
    """The secrets of one store, under the keys of the settings."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Use an open store, which stays the caller's. Needs no key until a value is encrypted or decrypted."""
        self._store = store
        self._settings = settings

    async def put(self, name: str, value: str) -> SecretInfo:
        """Store a secret, or give it another value; runs that have begun keep the old one.

        Raises:
            InvalidInputError: The name or the value is not acceptable; the message does not quote the value.
            SecretKeyError: There is no key.
        """
        check_secret_name(name)
        check_secret_value(value)
        cipher = await self._cipher()
        return await self._store.put_secret(name, cipher.encrypt(name, value))

    async def list(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets, by name."""
        return await self._store.list_secrets(limit=limit, offset=offset)

    async def delete(self, name: str) -> None:
        """Delete a secret; runs of agents that name it fail from now on.

        Raises:
            SecretNotFoundError: There is none of that name.
        """
        await self._store.delete_secret(check_secret_name(name))

    async def reveal(self, names: Iterable[str]) -> Mapping[str, str]:
        """Return the values of secrets, by name.

        Raises:
            SecretNotFoundError: Naming those that are not stored.
            SecretKeyError: There is no key, or none that fits.
            SecretDamagedError: One can't be decrypted.
        """
        wanted = sorted(set(names))
        stored = await self._store.get_secrets(wanted)
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise SecretNotFoundError(
                f"there is no secret {', '.join(map(repr, missing))}; store it with: harness secrets set {missing[0]}"
            )
        cipher = await self._cipher()
        return {name: cipher.decrypt(name, ciphertext) for name, ciphertext in stored.items()}

    async def rotate(self) -> int:
        """Encrypt anew, under the first key, what is stored under another one; return how many secrets that were.

        Can be repeated, also after it was cut. When it has run, and no process uses the other keys any more, they are
        not needed any more.

        Raises:
            SecretKeyError: There is no key, or one that a secret was stored under is missing.
            SecretDamagedError: A secret can't be decrypted.
        """
        cipher = await self._cipher()
        changed = offset = 0
        while True:
            page = await self._store.list_secrets(limit=_PAGE, offset=offset)
            stored = await self._store.get_secrets([secret.name for secret in page.items])
            for name, before in stored.items():
                if not cipher.is_current(before):
                    after = cipher.encrypt(name, cipher.decrypt(name, before))
                    # Not if it was set meanwhile.
                    changed += await self._store.replace_secret(name, before, after)
            offset += _PAGE
            if offset >= page.total_count:
                return changed

    async def _cipher(self) -> SecretCipher:
        return SecretCipher(await load_keys(self._settings), store_id=self._store.store_id)


async def load_keys(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys of the settings. A key file is read anew each time, so that keys can change without a restart.

    Raises:
        SecretKeyError: There is none, or the key file can't be read or is malformed.
    """
    path = settings.secrets_key_file
    if settings.secrets_key is not None and path is not None:
        raise SecretKeyError(
            "HARNESS_SECRETS_KEY and HARNESS_SECRETS_KEY_FILE are both set; leave one of them out"
        )
    if settings.secrets_key is not None:
        return parse_keys(settings.secrets_key.get_secret_value())
    if path is None:
        raise SecretKeyError(
            "there is no key to encrypt secrets with; make one with harness secrets keygen, keep it safe, and set "
            "HARNESS_SECRETS_KEY or HARNESS_SECRETS_KEY_FILE for every server and runner of this store"
        )
    try:
        return parse_keys(await asyncio.to_thread(_read_key_file, path))
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise SecretKeyError(f"HARNESS_SECRETS_KEY_FILE {str(path)!r} is of no use: {problem}") from None


def _read_key_file(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_KEY_FILE_BYTES + 1)
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise InvalidInputError(f"it is larger than {_MAX_KEY_FILE_BYTES:,} bytes")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidInputError("it holds more than keys") from None
