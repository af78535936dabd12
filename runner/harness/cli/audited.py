"""The service on the store at hand, with its changes written into the audit log as the server writes those of others."""

from __future__ import annotations

import functools
import os
import pwd
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from harness.audit import CLI, AuditDraft
from harness.cli.render import note
from harness.errors import StoreError

if TYPE_CHECKING:
    from harness.api import LocalApi
    from harness.ports import Store

#: Methods that change something: what OpenAPI calls them, the path they are for, and the path of what they make.
CHANGES: dict[str, tuple[str, str, str | None]] = {
    "create_agent": ("create_agent", "/api/agents", "/api/agents/{0.id}"),
    "update_agent": ("update_agent", "/api/agents/{}", None),
    "delete_agent": ("delete_agent", "/api/agents/{}", None),
    "run": ("run_agent", "/api/agents/{}/runs", "/api/tasks/{0.id}"),
    "cancel_task": ("cancel_task", "/api/tasks/{}/cancel", None),
    "cancel_tasks": ("cancel_tasks", "/api/tasks/cancel", None),
    "retry_task": ("retry_task", "/api/tasks/{}/retry", None),
    "put_schedule": ("put_schedule", "/api/agents/{}/schedule", None),
    "delete_schedule": ("delete_schedule", "/api/agents/{}/schedule", None),
    "remove_schedule": ("remove_schedule", "/api/agents/{}/schedule/remove", None),
    "pause_schedule": ("pause_schedule", "/api/agents/{}/schedule/pause", None),
    "resume_schedule": ("resume_schedule", "/api/agents/{}/schedule/resume", None),
    "backfill": ("backfill_schedule", "/api/agents/{}/schedule/backfill", None),
    "put_handoff": ("put_handoff", "/api/agents/{}/handoff", None),
    "clear_handoff": ("clear_handoff", "/api/agents/{}/handoff", None),
    "rollback_handoff": ("rollback_handoff", "/api/agents/{}/handoff/rollback", None),
    "put_secret": ("put_secret", "/api/secrets/{}", None),
    "delete_secret": ("delete_secret", "/api/secrets/{}", None),
    "create_token": ("create_token", "/api/tokens", "/api/tokens/{0.token.id}"),
    "revoke_token": ("revoke_token", "/api/tokens/{}", None),
}

_DONE = 200


class AuditedApi:
    """`harness.api.HarnessApi` by another one, on the store that has the audit log."""

    def __init__(self, api: LocalApi, store: Store, *, max_entries: int) -> None:
        """Stand in front of `api`; it and the store stay the caller's.

        Args:
            api: Does what is asked for.
            store: Has the audit log.
            max_entries: How many lines of it are kept.
        """
        self._api = api
        self._store = store
        self._max_entries = max_entries

    def __getattr__(self, name: str) -> Any:
        """Return a method of the service; one that changes something writes its line when it is done."""
        method = getattr(self._api, name)
        return functools.partial(self._change, name, method) if name in CHANGES else method

    async def _change(
        self, name: str, method: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any
    ) -> Any:
        result = await method(*arguments, **options)
        action, target, made = CHANGES[name]
        draft = AuditDraft(
            actor=CLI,
            peer=_user_name(),
            action=action,
            target=target.format(*arguments),
            made=None if made is None else made.format(result),
            status=_DONE,
        )
        try:
            await self._store.append_audit(draft, max_entries=self._max_entries)
        except StoreError as error:
            note(f"this is not in the audit log: {error.message}", label="warning:")
        return result


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # A container's made-up user id has no entry in the password file.
        return f"uid {os.getuid()}"
