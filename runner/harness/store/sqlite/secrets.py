"""Secrets in SQLite, as ciphertexts."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from harness.models import Page
from harness.secrets.info import SecretInfo
from harness.secrets.rules import check_secret_name
from harness.store import secrets
from harness.store.documents import check_page, to_millis
from harness.store.sqlite.base import SqlitePart
from harness.store.sqlite.rows import json_list, one, to_document


class SqliteSecrets(SqlitePart):
    """The secrets of a `SqliteStore`."""

    async def put_secret(self, name: str, ciphertext: bytes) -> SecretInfo:
        """Store a secret's ciphertext."""
        check_secret_name(name)
        secrets.check_ciphertext(ciphertext)

        def work(db: sqlite3.Connection) -> SecretInfo:
            now = to_millis(self._now())
            db.execute(
                "INSERT INTO secrets (name, created_at, updated_at, ciphertext) VALUES (?, ?, ?, ?) ON CONFLICT (name) "
                "DO UPDATE SET updated_at = excluded.updated_at, ciphertext = excluded.ciphertext",
                (name, now, now, ciphertext),
            )
            row = one(db, "SELECT name, created_at, updated_at FROM secrets WHERE name = ?", name)
            assert row is not None
            return secrets.secret_from(to_document(row))

        return await self._file.write(work)

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Encrypt a secret anew."""
        secrets.check_ciphertext(after)
        sql = "UPDATE secrets SET ciphertext = ? WHERE name = ? AND ciphertext = ?"
        return await self._file.write(lambda db: db.execute(sql, (after, name, before)).rowcount > 0)

    async def get_secrets(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Return ciphertexts by name."""
        sql = "SELECT name, ciphertext FROM secrets WHERE name IN (SELECT value FROM json_each(?))"
        rows = await self._file.read(lambda db: db.execute(sql, (json_list(names),)).fetchall())
        return {row["name"]: row["ciphertext"] for row in rows}

    async def list_secrets(self, *, limit: int = 100, offset: int = 0) -> Page[SecretInfo]:
        """Return what is known of the secrets."""
        check_page(limit, offset)

        def work(db: sqlite3.Connection) -> tuple[int, list[sqlite3.Row]]:
            count = db.execute("SELECT count(*) FROM secrets").fetchone()[0]
            sql = "SELECT name, created_at, updated_at FROM secrets ORDER BY name LIMIT ? OFFSET ?"
            return count, db.execute(sql, (limit, offset)).fetchall()

        count, rows = await self._file.read(work)
        return Page(tuple(secrets.secret_from(to_document(row)) for row in rows), count, limit, offset)

    async def delete_secret(self, name: str) -> None:
        """Delete a secret."""

        def work(db: sqlite3.Connection) -> int:
            return db.execute("DELETE FROM secrets WHERE name = ?", (name,)).rowcount

        if not await self._file.write(work):
            raise secrets.no_secret(name)
