"""What a program that runs for months says into its log as it starts: what it works with, and what is to come."""

from __future__ import annotations

import contextlib
import logging

from harness.errors import AgentNotFoundError, SandboxError, StoreUnavailableError
from harness.models import render_instant
from harness.ports import Store
from harness.sandbox.inspection import engine_facts, ping
from harness.settings import Settings
from harness.vault import load_keys
from harness.wiring import Runtime

logger = logging.getLogger(__name__)

#: Next fires that are listed.
NEXT_FIRES = 3


async def announce_parts(runtime: Runtime) -> None:
    """Say which store and which engine are used, and have the sandbox image built where it is missing.

    An engine that is away is a warning: tasks wait until it is there.

    Raises:
        SecretKeyError: A key file is set and of no use.
    """
    if runtime.settings.secrets_key_file is not None:
        # Now, and not when the first run needs it.
        await load_keys(runtime.settings)
    extra = {"action": "store_opened", "store_id": runtime.store.store_id}
    logger.info("store: %s", store_text(runtime.settings), extra=extra)
    engine = runtime.sandbox.engine
    try:
        await ping(engine)
        facts = await engine_facts(engine)
        extra = {"action": "engine_found", "engine": engine.address.url}
        logger.info("engine: Docker %s at %s", facts.version, engine.address.url, extra=extra)
        await runtime.images.ensure_default(_log_progress)
    except SandboxError as error:
        logger.warning("tasks wait: %s", error.message, extra={"action": "engine_missing"})


async def announce_schedules(store: Store) -> None:
    """Say how many schedules are in force, and what fires next; nothing while the store is away."""
    with contextlib.suppress(StoreUnavailableError):
        await _announce_schedules(store)


async def _announce_schedules(store: Store) -> None:
    page = await store.next_schedules(limit=NEXT_FIRES)
    fires = []
    for state in page.items:
        with contextlib.suppress(AgentNotFoundError):
            name = (await store.get_agent(state.agent_id)).name
            fires += [] if state.next_fire_at is None else [f"{name} at {render_instant(state.next_fire_at)}"]
    count = page.total_count
    schedules = "1 schedule" if count == 1 else f"{count:,} schedules"
    text = f"{schedules} in force" + (f"; next: {', '.join(fires)}" if fires else "")
    logger.info("%s", text, extra={"action": "schedules", "count": count})


def store_text(settings: Settings) -> str:
    """Say which store the settings name, without its secrets."""
    if settings.mongodb_uri is None:
        return f"SQLite in {settings.data_dir}"
    # In a connection string, @ ends the password and nothing else.
    address = settings.mongodb_uri.get_secret_value().partition("://")[2].rpartition("@")[2]
    hosts = address.partition("/")[0].partition("?")[0]
    return f"MongoDB at {hosts}, database {settings.mongodb_database}"


def _log_progress(line: str) -> None:
    logger.info("%s", line, extra={"action": "image_build"})
