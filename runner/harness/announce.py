"""What a program that runs for months says into its log as it starts: what it works with, and what is to come."""

from __future__ import annotations

import contextlib
import logging

from harness.errors import AgentNotFoundError, SandboxError, StoreUnavailableError
from harness.models import ScheduleState, render_instant
from harness.ports import Store
from harness.sandbox.inspection import engine_facts, ping
from harness.settings import Settings
from harness.vault import load_keys
from harness.wiring import Runtime

logger = logging.getLogger(__name__)

#: Agents looked at for the number of schedules; a start must not take longer with every agent there is.
MAX_AGENTS = 1000
#: Next fires that are listed.
NEXT_FIRES = 3

_PAGE = 50


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
    states, names, looked_at = [], {}, 0
    while looked_at < MAX_AGENTS:
        page = await store.list_agents(limit=_PAGE, offset=looked_at)
        looked_at += len(page.items)
        for agent in page.items:
            state = await _state(store, agent.id) if agent.config.get("schedule") else None
            if state is not None:
                states.append(state)
                names[agent.id] = agent.name
        if looked_at >= page.total_count or not page.items:
            break
    number = f"{len(states)}" if looked_at < MAX_AGENTS else f"at least {len(states)}"
    coming = sorted((state.next_fire_at, state.agent_id) for state in states if state.next_fire_at)
    fires = [f"{names[agent_id]} at {render_instant(at)}" for at, agent_id in coming[:NEXT_FIRES]]
    text = f"{number} schedules in force" + (f"; next: {', '.join(fires)}" if fires else "")
    logger.info("%s", text, extra={"action": "schedules", "count": len(states)})


async def _state(store: Store, agent_id: int) -> ScheduleState | None:
    """Return where a schedule stands that fires again; None for any other."""
    try:
        state = (await store.get_schedule(agent_id)).state
    except AgentNotFoundError:
        return None
    return state if state is not None and state.next_fire_at is not None else None


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
