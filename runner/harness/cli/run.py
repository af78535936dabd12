"""``harness run``: one run of an agent, now, in this process or on a server."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import inputs, text
from harness.cli.options import AgentArgument, JsonOption
from harness.cli.output import LiveOutput
from harness.cli.render import note, print_model, say
from harness.cli.session import EXIT_FAILED, StoppedBySignalError, find_agent, open_api, run_async

if TYPE_CHECKING:
    from harness.cli.runthere import RunThere
    from harness.models import ExecutionResult, Task
    from harness.ports import Store


def run(
    agent: AgentArgument,
    *,
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="JSON",
            help="What the agent sees as `context`, instead of the state of its last run; @FILE or - to read it.",
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Print the agent's output as it comes, or not at all."),
    ] = True,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Leave the run to a `harness serve` or `harness runner`."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run an agent once, now, and wait for its end.

    The agent's standard output goes to standard output, its standard error and a closing line about the run to standard
    error. A completed run saves its new state, also when it was given a --context. With --json only the result is
    printed, at the end. Ctrl+C cancels the run and removes its container; a reader that goes away (| head) does not end it.

    With --detach the run becomes a pending task, which is printed, and the command ends. It is retried like a scheduled
    one when it fails.

    With HARNESS_URL set, that server runs the agent, and retries it; this command follows the task's log to its end.

    The exit code is 0 when the run completed and 1 when it failed; see `harness --help` for the others.

    \b
    Examples:
      harness run greeter
      harness run greeter --context '{"city": "Oslo"}' > greeting.txt
      harness run greeter --json | jq .state
      harness run greeter --detach
    """
    given = None if context is None else inputs.read_json_object(context, what="context")
    if detach:
        _detach(agent, given, as_json=as_json)
        return
    output = LiveOutput(sys.stdout, sys.stderr) if follow and not as_json else None
    this = _run_here_or_there()
    try:
        result = run_async(lambda: this.execute(agent, given, output))
    except StoppedBySignalError as error:
        if this.task is None:
            raise
        raise StoppedBySignalError(error.number, f"{error}; task {this.task.id} {this.task.status}") from None
    finally:
        if output is not None:
            output.finish()
    if as_json:
        print_model(result)
    else:
        note(_summary(result))
    if not result.success:
        raise typer.Exit(EXIT_FAILED)


def _detach(reference: str, context: dict[str, Any] | None, *, as_json: bool) -> None:
    async def work() -> Task:
        async with open_api() as api:
            agent = await find_agent(api, reference)
            return await api.run(agent.id, context, save_handoff=True)

    task = run_async(work)
    if as_json:
        print_model(task)
    else:
        say(f"task {task.id} is {task.status}; follow it with: harness logs {task.id} --follow")


def _run_here_or_there() -> RunHere | RunThere:
    from harness.settings import get_settings

    if get_settings().url is None:
        return RunHere()
    from harness.cli.runthere import RunThere

    return RunThere()


class RunHere:
    """One run in this process, and the task it has become as soon as there is one."""

    def __init__(self) -> None:
        self.task: Task | None = None

    async def execute(
        self, reference: str, context: dict[str, Any] | None, output: LiveOutput | None
    ) -> ExecutionResult:
        """Run an agent once; return how that ended."""
        from harness.executor import AgentExecutor
        from harness.sandbox.inspection import ping
        from harness.wiring import open_runtime

        async with open_runtime() as runtime:
            agent = await find_agent(runtime.store, reference)
            # Before there is a task: an engine that is not there is no failure of the agent.
            await ping(runtime.sandbox.engine)
            if agent.options.image is None:
                await runtime.images.ensure_default(note)
            executor = AgentExecutor(
                store=runtime.store, sandbox=runtime.sandbox, clock=runtime.clock, settings=runtime.settings
            )
            try:
                return await executor.execute_agent(
                    agent.id, context, save_handoff=True, on_output=output, on_task=self._keep
                )
            except asyncio.CancelledError:
                await self._look_again(runtime.store)
                raise

    def _keep(self, task: Task) -> None:
        self.task = task

    async def _look_again(self, store: Store) -> None:
        """Learn how a task ended whose run was cancelled: it may have completed just before."""
        if self.task is not None:
            self.task = await store.get_task(self.task.id)


def _summary(result: ExecutionResult) -> str:
    took = text.seconds_text(result.duration_seconds)
    peak = result.usage.peak_memory_bytes
    details = [took] if peak is None else [took, f"peak memory {text.size_text(peak)}"]
    if result.output_truncated:
        details.append(f"output cut, {text.size_text(result.usage.output_bytes)} in all")
    line = f"task {result.task_id} {result.reason.status} ({', '.join(details)})"
    if result.success:
        return f"{line}: {result.summary}" if result.summary else line
    return f"{line}: {result.reason}: {result.error_message or 'no details'}"
