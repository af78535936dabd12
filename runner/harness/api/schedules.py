"""Schedules as the API shows and changes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from harness.api.values import MAX_FIRES, ScheduleView
from harness.config import MIN_INSTANT, AgentConfig
from harness.errors import ConflictError, InvalidInputError, VersionConflictError
from harness.models import AgentDraft, ScheduleState
from harness.ports import Store

if TYPE_CHECKING:
    from harness.scheduler import TaskScheduler

#: How often a change is begun anew when others change the agent at the same time.
_TRIES = 10


async def view(store: Store, scheduler: TaskScheduler, agent_id: int, fires: int) -> ScheduleView:
    """Return an agent's schedule with its next fires."""
    _check_fires(fires, least=0)
    source = await store.get_schedule(agent_id)
    return ScheduleView(
        agent_id=agent_id,
        schedule=source.config.get("schedule"),
        status=_status(AgentConfig.parse(source.config), source.state),
        state=source.state,
        next_fires=tuple(await scheduler.next_fires(agent_id, fires)) if fires else (),
    )


async def write(store: Store, agent_id: int, schedule: dict[str, Any] | None) -> None:
    """Put a schedule into an agent's config, or with None take it out; the rest of the agent stays."""
    if schedule is not None:
        AgentConfig.parse({"schedule": schedule})
    for _ in range(_TRIES):
        agent = await store.get_agent(agent_id)
        config = {key: value for key, value in agent.config.items() if key != "schedule"}
        if schedule is not None:
            config["schedule"] = schedule
        if config == agent.config:
            return
        draft = AgentDraft.model_validate(agent.draft_fields() | {"config": config})
        try:
            await store.update_agent(agent_id, draft, expected_version=agent.version)
        except VersionConflictError:
            continue
        return
    raise ConflictError(f"agent {agent_id} is changed by others all the time; try again")


def preview(schedule: dict[str, Any], now: datetime, fires: int) -> Sequence[datetime]:
    """Return when a schedule would fire if it came into force now."""
    _check_fires(fires, least=1)
    from harness import triggers

    options = AgentConfig.parse({"schedule": schedule}).schedule
    if options is None:
        raise InvalidInputError("there is no schedule to preview; give one")
    return triggers.preview(triggers.make_trigger(options, agent_id=0, anchor=now), now, fires)


async def backfill(
    store: Store, scheduler: TaskScheduler, agent_id: int, start: datetime, end: datetime | None
) -> Sequence[int]:
    """Make tasks of past fires that have none; return their ids."""
    if start < MIN_INSTANT:
        raise InvalidInputError(
            f"the range begins at {start.isoformat()}; begin it in {MIN_INSTANT.year} or later"
        )
    last = await store.now() if end is None else end
    if last < start:
        raise InvalidInputError(
            f"the range ends at {last.isoformat()}, before it begins at {start.isoformat()}; swap the two"
        )
    return [task.id for task in await scheduler.backfill(agent_id, start, last)]


def _check_fires(fires: int, *, least: int) -> None:
    if not least <= fires <= MAX_FIRES:
        raise InvalidInputError(f"fires is {fires}; give {least} to {MAX_FIRES}")


def _status(
    options: AgentConfig, state: ScheduleState | None
) -> Literal["in_force", "paused", "removed", "disabled", "none"]:
    if options.schedule is None:
        return "none"
    if state is not None and state.removed:
        return "removed"
    if not options.schedule.enabled:
        return "disabled"
    return "paused" if state is not None and state.paused else "in_force"
