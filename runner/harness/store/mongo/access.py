"""Tokens and the audit log in MongoDB."""

from __future__ import annotations

from collections.abc import Sequence

from harness.audit import AuditDraft, AuditEntry
from harness.models import Page
from harness.store import access
from harness.store.documents import check_page, int64
from harness.store.mongo.base import MongoPart
from harness.store.mongo.driver import Document
from harness.tokens import ApiToken, TokenDraft

TOKENS, AUDIT = "tokens", "audit"


class MongoAccess(MongoPart):
    """The tokens and the audit log of a `MongoStore`."""

    async def create_token(self, draft: TokenDraft, secret_hash: str) -> ApiToken:
        """Store a new token."""
        fields = access.token_document(draft, secret_hash, await self.now())
        token_id = await self._db.next_number(TOKENS)
        await self._db.insert(TOKENS, {"_id": token_id, **fields})
        return access.token_from({"id": token_id, **fields})

    async def find_token(self, token_id: int) -> tuple[ApiToken, str] | None:
        """Return a token and the hash of its secret."""
        document = await self._db.find_one(TOKENS, {"_id": int64(token_id)})
        return None if document is None else (_token(document), document["secret_hash"])

    async def has_tokens(self) -> bool:
        """Whether a token was ever made."""
        return await self._db.find_one(TOKENS, {}, fields=["_id"]) is not None

    async def list_tokens(self, *, limit: int = 100, offset: int = 0) -> Page[ApiToken]:
        """Return tokens by falling id."""
        check_page(limit, offset)
        found = await self._db.find(TOKENS, {}, sort=[("_id", -1)], limit=limit, offset=offset)
        return Page(tuple(map(_token, found)), await self._db.count(TOKENS, {}), limit, offset)

    async def revoke_token(self, token_id: int) -> ApiToken:
        """Make a token invalid for good."""
        now = await self.now()
        key = {"_id": int64(token_id)}
        await self._db.update_one(TOKENS, key | {"revoked_at": None}, {"$set": {"revoked_at": now}})
        document = await self._db.find_one(TOKENS, key)
        if document is None:
            raise access.no_token(token_id)
        return _token(document)

    async def touch_token(self, token_id: int) -> None:
        """Note that a token was used now."""
        now = await self.now()
        stale = [{"last_used_at": None}, {"last_used_at": {"$lt": access.stale_before(now)}}]
        query = {"_id": int64(token_id), "$or": stale}
        await self._db.update_one(TOKENS, query, {"$set": {"last_used_at": now}})

    async def append_audit(self, draft: AuditDraft, *, max_entries: int) -> AuditEntry:
        """Add a line to the audit log."""
        access.check_audit_bound(max_entries)
        fields = access.audit_document(draft, await self.now())
        entry_id = await self._db.next_number(AUDIT)
        await self._db.insert(AUDIT, {"_id": entry_id, **fields})
        if entry_id % access.AUDIT_BATCH == 0:
            await self._db.delete(AUDIT, {"_id": {"$lte": entry_id - max_entries}})
        return access.audit_from({"id": entry_id, **fields})

    async def list_audit(self, *, limit: int = 100, before_id: int | None = None) -> Sequence[AuditEntry]:
        """Return lines of the audit log by falling id."""
        check_page(limit)
        query: Document = {} if before_id is None else {"_id": {"$lt": int64(before_id)}}
        found = await self._db.find(AUDIT, query, sort=[("_id", -1)], limit=limit)
        return [access.audit_from(document | {"id": document["_id"]}) for document in found]


def _token(document: Document) -> ApiToken:
    return access.token_from(document | {"id": document["_id"]})
