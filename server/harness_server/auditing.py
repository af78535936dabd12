"""Writing down who changed what: in the store, for `harness audit`, and in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from harness.aio import uninterrupted
from harness.audit import AuditDraft
from harness.errors import HarnessError
from harness.ports import Clock, Store
from harness_server.auth import Principal
from harness_server.middleware import REQUEST_ID
from harness_server.problems import status_of
from harness_server.ratelimit import TokenBuckets

logger = logging.getLogger(__name__)

#: Bound on writing one line to the store, in seconds.
WRITE_SECONDS = 5.0
#: Refusals of one token that are stored at once, and how many more a second: nobody pushes the log's old lines out by
#: being refused. The server's log has them all.
DENIALS_AT_ONCE = 20
DENIALS_PER_SECOND = 0.1

_DENIED = 403


class Auditor:
    """Keeps the audit log of one server."""

    def __init__(self, store: Store, *, clock: Clock, max_entries: int) -> None:
        """Write to an open store, which stays the caller's."""
        self._store = store
        self._max_entries = max_entries
        self._denials = TokenBuckets(
            per_second=DENIALS_PER_SECOND, burst=DENIALS_AT_ONCE, monotonic=clock.monotonic
        )

    async def watch(
        self,
        request: web.Request,
        principal: Principal,
        action: str,
        work: Callable[[], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Do what changes something, and write down how it ended; what was refused as wrong changed nothing."""
        try:
            response = await work()
        except HarnessError as error:
            await self._write(request, principal, action, status_of(error), None)
            raise
        except asyncio.CancelledError:
            # The server stops, and may close the store next; the log at least has it.
            _log(_draft(request, principal, action, 500, None))
            raise
        except Exception:
            await self._write(request, principal, action, 500, None)
            raise
        await self._write(request, principal, action, response.status, response.headers.get("Location"))
        return response

    async def _write(
        self, request: web.Request, principal: Principal, action: str, status: int, made: str | None
    ) -> None:
        if 400 <= status < 500 and status != _DENIED:
            return
        draft = _draft(request, principal, action, status, made)
        _log(draft)
        if status == _DENIED and not self._denials.take(principal.key).is_granted:
            return
        # Not given up with the client: what was changed was changed.
        await uninterrupted(self._store_line(draft))

    async def _store_line(self, draft: AuditDraft) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._store.append_audit(draft, max_entries=self._max_entries)
        except (HarnessError, TimeoutError) as error:
            extra = {"action": "audit_failed", "request_id": draft.request_id}
            logger.error("this line of the audit log is in the server's log only: %s", error, extra=extra)


AUDITOR = web.AppKey("auditor", Auditor)


def _draft(
    request: web.Request, principal: Principal, action: str, status: int, made: str | None
) -> AuditDraft:
    return AuditDraft(
        token_id=None if principal.token is None else principal.token.id,
        actor=principal.actor,
        peer=principal.peer[:100],
        action=action,
        target=request.rel_url.raw_path[:300],
        made=made,
        status=status,
        request_id=request[REQUEST_ID],
    )


def _log(draft: AuditDraft) -> None:
    fields = draft.model_dump(exclude={"action"}, exclude_none=True)
    logger.info(
        "%s: %s %s: %d", draft.actor, draft.action, draft.target, draft.status,
        extra={"action": "audit", "change": draft.action, **fields},
    )  # fmt: skip
