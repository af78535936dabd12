"""Tokens and the audit log in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from harness.audit import AuditDraft, AuditEntry
from harness.models import Page
from harness.store import access
from harness.store.documents import check_page, int64, to_millis
from harness.store.sqlite.base import SqlitePart
from harness.store.sqlite.rows import insert, one, to_document, update
from harness.tokens import ApiToken, TokenDraft


class SqliteAccess(SqlitePart):
    """The tokens and the audit log of a `SqliteStore`."""

    async def create_token(self, draft: TokenDraft, secret_hash: str) -> ApiToken:
        """Store a new token."""

        def work(db: sqlite3.Connection) -> ApiToken:
            fields = access.token_document(draft, secret_hash, self._now())
            return access.token_from({"id": insert(db, "tokens", fields), **fields})

        return await self._file.write(work)

    async def find_token(self, token_id: int) -> tuple[ApiToken, str] | None:
        """Return a token and the hash of its secret."""
        row = await self._file.read(lambda db: _token_row(db, token_id))
        return None if row is None else (access.token_from(to_document(row)), row["secret_hash"])

    async def has_tokens(self) -> bool:
        """Whether a token was ever made."""
        return await self._file.read(lambda db: one(db, "SELECT 1 FROM tokens LIMIT 1")) is not None

    async def list_tokens(self, *, limit: int = 100, offset: int = 0) -> Page[ApiToken]:
        """Return tokens by falling id."""
        check_page(limit, offset)

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute("SELECT count(*) FROM tokens").fetchone()[0]
            sql = "SELECT * FROM tokens ORDER BY id DESC LIMIT ? OFFSET ?"
            return count, db.execute(sql, (limit, offset)).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(access.token_from(to_document(row)) for row in rows), count, limit, offset)

    async def revoke_token(self, token_id: int) -> ApiToken:
        """Make a token invalid for good."""

        def work(db: sqlite3.Connection) -> ApiToken:
            row = _token_row(db, token_id)
            if row is None:
                raise access.no_token(token_id)
            document = to_document(row)
            if document["revoked_at"] is None:
                document["revoked_at"] = self._now()
                update(db, "tokens", token_id, {"revoked_at": document["revoked_at"]})
            return access.token_from(document)

        return await self._file.write(work)

    async def touch_token(self, token_id: int) -> None:
        """Note that a token was used now."""

        def work(db: sqlite3.Connection) -> None:
            now = self._now()
            sql = "UPDATE tokens SET last_used_at = ? WHERE id = ? AND coalesce(last_used_at, 0) < ?"
            db.execute(sql, (to_millis(now), int64(token_id), to_millis(access.stale_before(now))))

        await self._file.write(work)

    async def append_audit(self, draft: AuditDraft, *, max_entries: int) -> AuditEntry:
        """Add a line to the audit log."""
        access.check_audit_bound(max_entries)

        def work(db: sqlite3.Connection) -> AuditEntry:
            fields = access.audit_document(draft, self._now())
            entry_id = insert(db, "audit", fields)
            if entry_id % access.AUDIT_BATCH == 0:
                db.execute("DELETE FROM audit WHERE id <= ?", (entry_id - max_entries,))
            return access.audit_from({"id": entry_id, **fields})

        return await self._file.write(work)

    async def list_audit(self, *, limit: int = 100, before_id: int | None = None) -> Sequence[AuditEntry]:
        """Return lines of the audit log by falling id."""
        check_page(limit)
        before = int64(2**63 if before_id is None else before_id)
        sql = "SELECT * FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?"
        rows = await self._file.read(lambda db: db.execute(sql, (before, limit)).fetchall())
        return [access.audit_from(to_document(row)) for row in rows]


def _token_row(db: sqlite3.Connection, token_id: int) -> sqlite3.Row | None:
    return one(db, "SELECT * FROM tokens WHERE id = ?", int64(token_id))
