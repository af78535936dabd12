"""``harness purge``: deleting now what a `harness serve` deletes every hour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import JsonOption
from harness.cli.render import note, print_json, print_table, say
from harness.cli.session import EXIT_FAILED, find_agent, open_store, run_async
from harness.errors import AgentNotFoundError, HarnessError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.ports import Store
    from harness.retention import Purged


@dataclass(frozen=True, slots=True)
class _Row:
    agent_id: int
    name: str
    purged: Purged


def purge(
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="AGENT", help="Only what is kept of this agent.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; count what would be deleted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete tasks, logs and handoff artifacts that are not to be kept any longer.

    How much is kept is said by HARNESS_RETENTION_TASK_DAYS, HARNESS_RETENTION_MAX_TASKS, and so on, and for one agent
    by the same words under retention in its config. A `harness serve` deletes the rest every hour, by itself.

    What has not ended, what ended in the last hour, and an agent's newest artifact always stay. This works on the store
    itself, whatever HARNESS_URL says.

    \b
    Examples:
      harness purge --dry-run
      harness purge --agent nightly
    """
    failed = 0

    async def work() -> list[_Row]:
        from harness.clock import SystemClock
        from harness.purging import Purger
        from harness.retention import Retention
        from harness.settings import get_settings

        nonlocal failed
        rows = []
        async with open_store() as store:
            purger = Purger(store, SystemClock(), Retention.by_settings(get_settings()))
            do = purger.purgeable if dry_run else purger.purge
            if agent is not None:
                found = await find_agent(store, agent)
                return [_Row(found.id, found.name, await do(found.id))]
            async for agent_id in _agent_ids(store):
                try:
                    purged = await do(agent_id)
                    if not purged.is_empty:
                        rows.append(_Row(agent_id, (await store.get_agent(agent_id)).name, purged))
                except AgentNotFoundError:
                    continue
                except StoreUnavailableError:
                    raise
                except HarnessError as error:
                    failed += 1
                    note(f"agent {agent_id} is left as it is: {error}", label="warning:")
        return rows

    _show(run_async(work), dry_run=dry_run, as_json=as_json)
    if failed:
        raise typer.Exit(EXIT_FAILED)


async def _agent_ids(store: Store) -> AsyncIterator[int]:
    last = 0
    while ids := await store.agent_ids(after_id=last):
        for agent_id in ids:
            yield agent_id
        last = ids[-1]


def _show(rows: list[_Row], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        agents = [{"agent_id": row.agent_id, "name": row.name, **_counts(row.purged)} for row in rows]
        print_json({"dry_run": dry_run, "agents": agents})
        return
    rows = [row for row in rows if not row.purged.is_empty]
    if not rows:
        say("nothing to delete")
        return
    headers = ["AGENT", "TASKS", "LOGS OF OTHER TASKS", "ARTIFACTS"]
    cells = [[row.name, *map(str, _counts(row.purged).values())] for row in rows]
    print_table(headers, cells, give_way="AGENT")
    note("nothing was deleted; without --dry-run it is" if dry_run else "deleted")


def _counts(purged: Purged) -> dict[str, int]:
    return {"tasks": purged.tasks, "logs": purged.logs, "artifacts": purged.artifacts}
