"""``harness handoff``: what an agent remembers from run to run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import inputs, text
from harness.cli.options import AgentArgument, JsonOption, group
from harness.cli.render import (
    note,
    print_fields,
    print_json,
    print_json_section,
    print_model,
    print_table,
    say,
)
from harness.cli.session import check_text, find_agent, open_api, run_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.models import Agent, HandoffArtifact

app = group("Look at and change the state that an agent hands from run to run.")


@app.command("show")
def show(
    agent: AgentArgument,
    *,
    state: Annotated[bool, typer.Option("--state", help="Print the state alone, as JSON.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the newest artifact: what the next run gets as its context.

    \b
    Examples:
      harness handoff show greeter
      harness handoff show greeter --state > state.json
    """

    async def work() -> HandoffArtifact:
        async with open_api() as api:
            return await api.get_handoff((await find_agent(api, agent)).id)

    artifact = run_async(work)
    if state:
        print_json(artifact.state)
    elif as_json:
        print_model(artifact)
    else:
        print_fields(
            {
                "agent": str(artifact.agent_id),
                "version": str(artifact.version),
                "runs": str(artifact.run_count),
                "saved": f"{text.instant_text(artifact.created_at)} by {_author(artifact)}",
                "summary": artifact.summary,
            }
        )
        print_json_section("state", artifact.state)


@app.command("set")
def set_(
    agent: AgentArgument,
    state: Annotated[
        str, typer.Argument(metavar="STATE", help="A JSON object, @FILE, or - for standard input.")
    ],
    *,
    summary: Annotated[str, typer.Option("--summary", metavar="TEXT", help="A line for people.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Save a state as the newest artifact.

    \b
    Examples:
      harness handoff set greeter '{"count": 3}'
      harness handoff set greeter @state.json --summary "fixed by hand"
    """
    check_text(summary, what="--summary")
    new = inputs.read_json_object(state, what="state")

    async def work() -> HandoffArtifact:
        async with open_api() as api:
            return await api.put_handoff((await find_agent(api, agent)).id, new, summary)

    _show_saved(run_async(work), as_json=as_json)


@app.command("clear")
def clear(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Make the next run a first run. The history stays, and `handoff rollback` brings a state back.

    \b
    Example:
      harness handoff clear greeter
    """

    async def work() -> Agent:
        async with open_api() as api:
            found = await find_agent(api, agent)
            await api.clear_handoff(found.id)
            return found

    found = run_async(work)
    if as_json:
        print_json({"agent_id": found.id, "cleared": True})
    else:
        say(f"the next run of agent {found.id} ({found.name}) is a first run")


@app.command("history")
def history(
    agent: AgentArgument,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Print at most this many.")] = 20,
    before: Annotated[
        int | None, typer.Option("--before", metavar="VERSION", min=1, help="Only versions below this one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List an agent's artifacts, the newest first.

    \b
    Examples:
      harness handoff history greeter
      harness handoff history greeter --before 40 --json
    """

    async def work() -> Sequence[HandoffArtifact]:
        async with open_api() as api:
            found = await find_agent(api, agent)
            return await api.handoff_history(found.id, limit=limit, before_version=before)

    artifacts = run_async(work)
    if as_json:
        print_json({"items": [artifact.model_dump(mode="json") for artifact in artifacts]})
        return
    rows = [
        [
            str(artifact.version),
            str(artifact.run_count),
            text.instant_text(artifact.created_at),
            _author(artifact),
            "cleared"
            if artifact.cleared
            else text.size_text(len(json.dumps(artifact.state, separators=(",", ":")))),
            artifact.summary,
        ]
        for artifact in artifacts
    ]
    print_table(["VERSION", "RUNS", "SAVED", "BY", "STATE", "SUMMARY"], rows, give_way="SUMMARY")
    if len(artifacts) == limit and artifacts[-1].version > 1:
        note(f"go on with --before {artifacts[-1].version}")


@app.command("rollback")
def rollback(
    agent: AgentArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="A version of `handoff history`.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Save an old version's state as the newest artifact.

    \b
    Example:
      harness handoff rollback greeter 7
    """

    async def work() -> HandoffArtifact:
        async with open_api() as api:
            return await api.rollback_handoff((await find_agent(api, agent)).id, version)

    _show_saved(run_async(work), as_json=as_json)


def _show_saved(artifact: HandoffArtifact, *, as_json: bool) -> None:
    if as_json:
        print_model(artifact)
    else:
        say(f"version {artifact.version} of the state of agent {artifact.agent_id} saved")


def _author(artifact: HandoffArtifact) -> str:
    return "a person" if artifact.task_id is None else f"task {artifact.task_id}"
