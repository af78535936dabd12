"""``/api/audit``: who changed what."""

from __future__ import annotations

from aiohttp import web

from harness.api.values import AuditPage, AuditQuery
from harness.tokens import Scope
from harness_server.endpoint import Answer, Call, Endpoint, json_answer


async def list_audit(call: Call[AuditQuery, None]) -> web.Response:
    """List changes, and what was refused for want of a scope, the newest first."""
    entries = await call.api.list_audit(limit=call.query.limit, before_id=call.query.before_id)
    return json_answer(AuditPage(entries=tuple(entries)))


routes = [
    Endpoint(
        method="GET",
        path="/api/audit",
        handler=list_audit,
        scope=Scope.ADMIN,
        query=AuditQuery,
        answers={200: Answer("One page of the audit log.", AuditPage)},
    ),
]
