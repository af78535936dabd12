"""``harness schedule``: when an agent runs. What the schedule says is in the agent's config; this is where it stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harness.cli import text
from harness.cli.options import AgentArgument, JsonOption, group
from harness.cli.render import note, print_fields, print_json, print_model, say
from harness.cli.session import find_agent, open_api, run_async
from harness.errors import InvalidInputError

if TYPE_CHECKING:
    from harness.api import HarnessApi
    from harness.api.values import ScheduleView
    from harness.models import Agent

T = TypeVar("T")

#: Fires that are shown beside something else.
FEW_FIRES = 3

app = group("See, pause and resume agents' schedules, and make up for missed fires.")

#: For people, with what would change it.
_STATUS = {
    "none": "no schedule",
    "removed": "removed (harness schedule add)",
    "disabled": "off (enabled is false in its config)",
    "paused": "paused (harness schedule resume)",
    "in_force": "in force",
}

Work = Callable[["HarnessApi", "Agent"], Awaitable[T]]


@app.command("show")
def show(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Show an agent's schedule, where it stands, and its next fires.

    \b
    Example:
      harness schedule show nightly
    """
    found, view = _run(agent, lambda api, found: api.get_schedule(found.id, fires=FEW_FIRES))
    state, status = view.state, _STATUS[view.status]
    if as_json:
        print_json(
            {
                "agent_id": found.id,
                "agent_name": found.name,
                "schedule": view.schedule,
                "status": status,
                "next_fires": _rendered(view.next_fires),
                "state": None if state is None else state.model_dump(mode="json"),
            }
        )
        return
    print_fields(
        {
            "agent": f"{found.id} ({found.name})",
            "schedule": text.schedule_text(found.config),
            "status": status,
            "last fire": text.instant_text(state.last_fire_at) if state else "",
            "next fires": ", ".join(map(text.instant_text, view.next_fires)),
        }
    )


@app.command("next")
def next_(
    agent: AgentArgument,
    *,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="How many.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Print an agent's next fire times, one a line; none when its schedule is off.

    \b
    Example:
      harness schedule next nightly -n 10
    """
    fires = _run(agent, lambda api, found: api.get_schedule(found.id, fires=number))[1].next_fires
    if as_json:
        print_json({"next_fires": _rendered(fires)})
        return
    for fire in fires:
        say(text.instant_text(fire))
    if not fires:
        note("it does not fire any more; harness schedule show says why")


@app.command("pause")
def pause(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Fire an agent no more until it is resumed, over restarts too. What runs goes on.

    \b
    Example:
      harness schedule pause nightly
    """
    found, view = _run(agent, lambda api, found: api.pause_schedule(found.id))
    _show_state(found, view, "paused", as_json=as_json)


@app.command("resume")
def resume(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Fire a paused agent again, from now on; what would have fired meanwhile is not made up for.

    \b
    Example:
      harness schedule resume nightly
    """
    found, view = _run(agent, lambda api, found: api.resume_schedule(found.id))
    _show_state(found, view, "resumed", as_json=as_json)


@app.command("add")
def add(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Take the schedule in an agent's config into force again, after a remove or a pause.

    \b
    Example:
      harness schedule add nightly
    """
    found, view = _run(agent, lambda api, found: api.resume_schedule(found.id))
    _show_state(found, view, "in force", as_json=as_json)


@app.command("remove")
def remove(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Take an agent's schedule out of force until it is added again. Its config keeps it; its tasks stay.

    \b
    Example:
      harness schedule remove nightly
    """
    found = _run(agent, lambda api, found: api.remove_schedule(found.id))[0]
    if as_json:
        print_json({"agent_id": found.id, "removed": True})
    else:
        say(f"the schedule of agent {found.id} ({found.name}) is out of force")


@app.command("backfill")
def backfill(
    agent: AgentArgument,
    *,
    begin: Annotated[
        str, typer.Option("--from", metavar="INSTANT", help="First instant, as 2026-01-31T09:00Z or …+01:00.")
    ],
    end: Annotated[
        str | None, typer.Option("--to", metavar="INSTANT", help="Last instant; now if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make tasks of past fires that have none; they run one after the other.

    A fire whose task was deleted (see harness purge) has none, and runs again.

    \b
    Examples:
      harness schedule backfill nightly --from 2026-01-01T00:00Z
      harness schedule backfill hourly --from 2026-01-01T00:00+01:00 \\
          --to 2026-01-02T00:00+01:00
    """
    first, last = _instant(begin, "--from"), None if end is None else _instant(end, "--to")

    ids = list(_run(agent, lambda api, found: api.backfill(found.id, first, last))[1])
    if as_json:
        print_json({"task_ids": ids})
    else:
        say(f"{len(ids)} tasks made" + (f": {ids[0]} to {ids[-1]}" if len(ids) > 1 else ""))


async def fires_text(api: HarnessApi, agent: Agent) -> str:
    """Return an agent's next fires as a line for people."""
    fires = (await api.get_schedule(agent.id, fires=FEW_FIRES)).next_fires
    if not fires:
        return "its schedule is off; harness schedule show says why"
    return f"next fires: {', '.join(map(text.instant_text, fires))}"


def _run(reference: str, work: Work[T]) -> tuple[Agent, T]:
    async def main() -> tuple[Agent, T]:
        async with open_api() as api:
            found = await find_agent(api, reference)
            return found, await work(api, found)

    return run_async(main)


def _show_state(agent: Agent, view: ScheduleView, word: str, *, as_json: bool) -> None:
    state = view.state
    assert state is not None  # the change has just made it
    if as_json:
        print_model(state)
        return
    following = f"; next fire {text.instant_text(state.next_fire_at)}" if state.next_fire_at else ""
    say(f"the schedule of agent {agent.id} ({agent.name}) is {word}{following}")


def _rendered(fires: Sequence[datetime]) -> list[str]:
    from harness.models import render_instant

    return list(map(render_instant, fires))


def _instant(value: str, option: str) -> datetime:
    from harness.config import MAX_INSTANT, MIN_INSTANT

    example = "write it like 2026-01-31T09:00Z or 2026-01-31T10:00+01:00"
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInputError(f"{option} {value!r} is no instant; {example}") from None
    if instant.tzinfo is None:
        raise InvalidInputError(f"{option} {value!r} says no offset from UTC; {example}")
    if not MIN_INSTANT <= instant <= MAX_INSTANT:
        raise InvalidInputError(f"{option} {value!r} does not lie between 1970 and 3000")
    return instant
