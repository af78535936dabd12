"""Secrets in MongoDB, as ciphertexts, each in a document of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.models import Page
from harness.secrets.info import SecretInfo
from harness.secrets.rules import check_secret_name
from harness.store import secrets
from harness.store.documents import check_page
from harness.store.mongo.base import MongoPart
from harness.store.mongo.driver import Document, DuplicateKey

SECRETS = "secrets"

_SHOWN = ("created_at", "updated_at")


class MongoSecrets(MongoPart):
    """The secrets of a `MongoStore`."""

    async def put_secret(self, name: str, ciphertext: bytes) -> SecretInfo:
        """Store a secret's ciphertext."""
        check_secret_name(name)
        secrets.check_ciphertext(ciphertext)
        now = await self.now()
        changes = {"ciphertext": ciphertext, "updated_at": now}
        # An upsert may fail where two of them insert at once, and so comes to the same.
        while not await self._db.update_one(SECRETS, {"_id": name}, {"$set": changes}):
            try:
                await self._db.insert(SECRETS, {"_id": name, "created_at": now, **changes})
            except DuplicateKey:
                continue
            break
        stored = await self._db.find_one(SECRETS, {"_id": name}, fields=_SHOWN)
        # Deleted by somebody else since then, it was stored all the same.
        return _secret(stored or {"_id": name, "created_at": now, "updated_at": now})

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Encrypt a secret anew."""
        secrets.check_ciphertext(after)
        query = {"_id": name, "ciphertext": before}
        return await self._db.update_one(SECRETS, query, {"$set": {"ciphertext": after}})

    async def get_secrets(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Return ciphertexts by name."""
        if not names:
            return {}
        query = {"_id": {"$in": list(names)}}
        found = await self._db.find(SECRETS, query, sort=[("_id", 1)], limit=len(names))
        return {document["_id"]: bytes(document["ciphertext"]) for document in found}

    async def list_secrets(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets."""
        check_page(limit, offset)
        found = await self._db.find(SECRETS, {}, sort=[("_id", 1)], limit=limit, offset=offset, fields=_SHOWN)
        return Page(tuple(map(_secret, found)), await self._db.count(SECRETS, {}), limit, offset)

    async def delete_secret(self, name: str) -> None:
        """Delete a secret."""
        if await self._db.find_one(SECRETS, {"_id": name}, fields=_SHOWN) is None:
            raise secrets.no_secret(name)
        await self._db.delete(SECRETS, {"_id": name})


def _secret(document: Document) -> SecretInfo:
    return secrets.secret_from(document | {"name": document["_id"]})
