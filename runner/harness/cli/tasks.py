"""``harness tasks`` and ``harness logs``: what ran, and what it printed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import text
from harness.cli.options import JsonOption, LimitOption, OffsetOption, TaskArgument, group
from harness.cli.output import LiveOutput
from harness.cli.render import (
    note,
    note_rest,
    print_fields,
    print_json,
    print_json_section,
    print_model,
    print_page_json,
    print_table,
    say,
)
from harness.cli.session import find_agent, open_api, run_async
from harness.errors import AgentNotFoundError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.api import HarnessApi
    from harness.api.values import LogEvent
    from harness.models import Attempt, Page, Task, TaskStatus

app = group("See, cancel and retry tasks: the records of runs.")


class LogStream(StrEnum):
    """Which output to print."""

    STDOUT = "stdout"
    STDERR = "stderr"
    BOTH = "both"


@app.command("list")
def list_(
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="AGENT", help="Only tasks of this agent.")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="Only tasks that are pending, running, completed, failed, cancelled or skipped."
        ),
    ] = None,
    limit: LimitOption = 20,
    offset: OffsetOption = 0,
    as_json: JsonOption = False,
) -> None:
    """List tasks, the newest first.

    \b
    Examples:
      harness tasks list --agent greeter --status failed
      harness tasks list --limit 100 --json
    """
    wanted = None if status is None else _status(status)

    async def work() -> tuple[Page[Task], dict[int, str]]:
        async with open_api() as api:
            agent_id = None if agent is None else (await find_agent(api, agent)).id
            page = await api.list_tasks(agent_id=agent_id, status=wanted, limit=limit, offset=offset)
            return page, {} if as_json else await _agent_names(api, page.items)

    page, names = run_async(work)
    if as_json:
        print_page_json(page)
        return
    rows = [
        [
            str(task.id),
            names.get(task.agent_id, str(task.agent_id)),
            task.status,
            task.reason if task.reason is not None and str(task.reason) != task.status else "",
            text.instant_text(task.started_at),
            _duration(task),
            task.result or task.error or "",
        ]
        for task in page.items
    ]
    print_table(["ID", "AGENT", "STATUS", "REASON", "STARTED", "TOOK", "RESULT"], rows, give_way="RESULT")
    note_rest(page)


@app.command("show")
def show(task: TaskArgument, *, as_json: JsonOption = False) -> None:
    """Show a task with its attempts.

    \b
    Examples:
      harness tasks show 12
      harness tasks show 12 --json | jq .attempts
    """

    async def work() -> tuple[Task, dict[int, str]]:
        async with open_api() as api:
            found = await api.get_task(task)
            return found, await _agent_names(api, [found])

    found, names = run_async(work)
    if as_json:
        print_model(found)
        return
    print_fields(
        {
            "id": str(found.id),
            "agent": f"{found.agent_id} ({names.get(found.agent_id, 'deleted')})",
            "status": found.status,
            "reason": found.reason or "",
            "result": found.result or "",
            "error": found.error or "",
            "trigger": found.trigger,
            "scheduled": text.instant_text(found.scheduled_at),
            "started": text.instant_text(found.started_at),
            "ended": text.instant_text(found.completed_at),
            "took": _duration(found),
            "retries": str(found.retry_count),
            "lease": f"{found.lease_owner} until {text.instant_text(found.due_at)}"
            if found.lease_owner
            else "",
        }
    )
    if found.context is not None:
        print_json_section("context", found.context)
    if found.attempts:
        typer.echo()
        headers = ["ATTEMPT", "REASON", "EXIT", "TOOK", "START", "MEMORY", "CPU", "OUTPUT", "ERROR"]
        print_table(headers, [_attempt_row(attempt) for attempt in found.attempts], give_way="ERROR")


@app.command("cancel")
def cancel(task: TaskArgument, *, as_json: JsonOption = False) -> None:
    """Cancel a task: a pending one at once; a running one is stopped by its runner within a second or two.

    A task that has ended stays as it is.

    \b
    Example:
      harness tasks cancel 12
    """

    async def work() -> Task:
        async with open_api() as api:
            return await api.cancel_task(task)

    found = run_async(work)
    if as_json:
        print_model(found)
    elif found.status.is_final:
        say(f"task {found.id} is {found.status}")
    else:
        say(f"task {found.id} is {found.status}, and its runner was asked to stop it")


@app.command("retry")
def retry(
    task: TaskArgument,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Once more also when its retries are used up.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a failed task tried again, after its agent's retry delay; a `harness serve` or `harness runner` does it.

    \b
    Example:
      harness tasks retry 12 --force
    """

    async def work() -> Task:
        async with open_api() as api:
            return await api.retry_task(task, force=force)

    found = run_async(work)
    if as_json:
        print_model(found)
    else:
        say(f"task {found.id} is {found.status}, due {text.instant_text(found.due_at)}")


def logs(
    task: TaskArgument,
    *,
    stream: Annotated[
        LogStream,
        typer.Option(
            "--stream",
            help="Both print each to its own standard stream; one alone prints to standard output.",
        ),
    ] = LogStream.BOTH,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the stored output of a task.

    Output beyond the agent's limits.max_output_bytes was not kept; `harness tasks show` says so.

    \b
    Examples:
      harness logs 12
      harness logs 12 --follow
      harness logs 12 --stream stderr | grep -i warning
    """
    wanted = {"stdout", "stderr"} if stream is LogStream.BOTH else {str(stream)}
    if as_json:
        _print_logs_json(task, wanted, follow=follow)
        return
    output = LiveOutput(sys.stdout, sys.stderr if stream is LogStream.BOTH else sys.stdout)

    async def work() -> None:
        is_empty = True
        async with open_api() as api:
            async with contextlib.aclosing(api.log_events(task, follow=follow)) as events:
                async for event in events:
                    if output.reader_is_gone:
                        return
                    if event.kind in ("stdout", "stderr"):
                        is_empty = False
                        if event.kind in wanted:
                            output(event.kind, event.text.encode())
            if is_empty and any(a.usage.output_bytes for a in (await api.get_task(task)).attempts):
                note(f"the output of task {task} was deleted; how long it is kept: harness purge --help")

    try:
        run_async(work)
    finally:
        output.finish()
    if output.reader_is_gone:
        raise BrokenPipeError


def _print_logs_json(task: int, wanted: set[str], *, follow: bool) -> None:
    async def work() -> list[LogEvent]:
        async with open_api() as api:
            return [event async for event in api.log_events(task, follow=follow) if event.kind in wanted]

    from harness.models import render_instant

    chunks: list[dict[str, Any]] = [
        {
            "seq": event.seq,
            "attempt": event.attempt,
            "stream": event.kind,
            "data": event.text,
            "at": None if event.at is None else render_instant(event.at),
        }
        for event in run_async(work)
    ]
    print_json({"task_id": task, "chunks": chunks})


def _status(word: str) -> TaskStatus:
    from harness.models import TaskStatus

    try:
        return TaskStatus(word)
    except ValueError:
        raise InvalidInputError(f"--status {word!r} is none of: {', '.join(TaskStatus)}") from None


async def _agent_names(api: HarnessApi, tasks: Iterable[Task]) -> dict[int, str]:
    async def name(agent_id: int) -> tuple[int, str] | None:
        with contextlib.suppress(AgentNotFoundError):  # deleted meanwhile
            return agent_id, (await api.get_agent(agent_id)).name
        return None

    found = await asyncio.gather(*map(name, {task.agent_id for task in tasks}))
    return dict(filter(None, found))


def _duration(task: Task) -> str:
    if task.started_at is None or task.completed_at is None:
        return ""
    return text.seconds_text((task.completed_at - task.started_at).total_seconds())


def _attempt_row(attempt: Attempt) -> list[str]:
    usage = attempt.usage
    return [
        str(attempt.number),
        attempt.reason or "running",
        "" if attempt.exit_code is None else str(attempt.exit_code),
        "" if usage.wall_seconds is None else text.seconds_text(usage.wall_seconds),
        "" if usage.container_start_seconds is None else text.seconds_text(usage.container_start_seconds),
        "" if usage.peak_memory_bytes is None else text.size_text(usage.peak_memory_bytes),
        "" if usage.cpu_seconds is None else text.seconds_text(usage.cpu_seconds),
        text.size_text(usage.output_bytes) + (" (cut)" if attempt.output_truncated else ""),
        attempt.error or "",
    ]
