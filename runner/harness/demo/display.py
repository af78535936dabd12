"""What the demo shows: live lines and a progress bar on a terminal, the same lines plain anywhere else."""

from __future__ import annotations

import asyncio
import errno
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from harness.cli.text import TerminalText, seconds_text, size_text
from harness.demo.session import Check, FinishedRun
from harness.models import ExecutionResult
from harness.ports import OutputStream

#: Prose is not wrapped later than here, however wide the terminal.
MAX_PROSE_WIDTH = 100
#: The longest step name, ``SUMMARIZE``, and two blanks.
_STEP_WIDTH = 11
#: Findings shown of those the artifact holds.
_SHOWN_FINDINGS = 5

#: How a line of the agent says how far it is; see `harness.demo.stdlib_audit.audit_batch`.
_PROGRESS = re.compile(r" *(\d+)/(\d+) ")

_TABLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "title_justify": "left",
    "header_style": "bold",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise what rich turns into an exit, so that the demo cleans up first."""
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output any more")


class Display:
    """Prints the demo to standard output. Also an `OutputSink`: what it is called with is the agent's output."""

    def __init__(self) -> None:
        self._console = _Console(highlight=False, markup=False, emoji=False)
        # A bar redraws itself with control codes, which FORCE_COLOR must not bring into a file.
        self._has_bar = self._console.is_interactive and sys.stdout.isatty()
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("modules"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._has_bar,
        )
        self._bar: TaskID | None = None
        self._decoders: dict[OutputStream, TerminalText] = {}
        self._unfinished: dict[OutputStream, str] = {}
        # A sink must not block, and a terminal held with Ctrl+S does: while an agent runs, a thread prints.
        self._printer = ThreadPoolExecutor(1, thread_name_prefix="demo-output")
        self._printing: list[Future[None]] = []

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the bar meanwhile."""
        with self._progress, self._printer:
            self._bar = self._progress.add_task("starting", total=None)
            yield

    def title(self, text: str) -> None:
        """Print what comes."""
        self._console.print(Text(text, "bold"))

    def say(self, text: str) -> None:
        """Print prose, wrapped."""
        for line in textwrap.wrap(text, self._prose_width, break_on_hyphens=False, break_long_words=False):
            self._line(line)

    def step(self, name: str, text: str) -> None:
        """Print a step of the loop and what happens in it."""
        lines = textwrap.wrap(text, self._prose_width - _STEP_WIDTH - 2, break_on_hyphens=False)
        for number, line in enumerate(lines):
            label = f"  {'' if number else name:<{_STEP_WIDTH}}"
            self._console.print(Text.assemble((label, "bold cyan"), line), soft_wrap=True)

    def run_begins(self, number: int) -> None:
        """Print the head of a run."""
        self._console.print()
        self._line(f"run {number}", "bold")
        if self._bar is not None:
            self._progress.update(self._bar, description=f"run {number}")

    async def run_ended(self, result: ExecutionResult, state_bytes: int) -> None:
        """Print the rest of the agent's output and how the run ended.

        Raises:
            OSError: The output could not be printed.
        """
        self._printing.append(self._printer.submit(self._finish_output))
        await asyncio.gather(*map(asyncio.wrap_future, self._printing))
        self._printing.clear()
        if not result.success:
            self._line(f"  {result.reason}: {result.error_message or 'no details'}", "bold red")
            return
        start_seconds = result.usage.container_start_seconds or 0.0
        self._line(
            f"  {result.reason}: {seconds_text(result.duration_seconds)}, container started in "
            f"{seconds_text(start_seconds)}, {state_bytes:,} bytes handed over",
            "green",
        )

    def __call__(self, stream: OutputStream, data: bytes) -> None:
        """Have the agent's output printed; returns at once."""
        self._printing.append(self._printer.submit(self._print_output, stream, data))

    def _print_output(self, stream: OutputStream, data: bytes) -> None:
        decoder = self._decoders.setdefault(stream, TerminalText())
        *lines, rest = (self._unfinished.get(stream, "") + decoder.feed(data)).split("\n")
        self._unfinished[stream] = rest
        for line in lines:
            self._agent_line(line, stream)

    def _finish_output(self) -> None:
        for stream, decoder in self._decoders.items():
            rest = self._unfinished.get(stream, "") + decoder.feed(b"", final=True)
            if rest:
                self._agent_line(rest, stream)
        self._decoders.clear()
        self._unfinished.clear()

    def _agent_line(self, line: str, stream: OutputStream) -> None:
        style = "dim red" if stream == "stderr" else "dim"
        text = Text(f"    | {line}", style, no_wrap=True, overflow="ellipsis")
        self._console.print(text, soft_wrap=not self._has_bar)
        found = _PROGRESS.match(line)
        if found and self._bar is not None:
            self._progress.update(self._bar, completed=int(found[1]), total=int(found[2]))

    def runs(self, runs: Sequence[FinishedRun]) -> None:
        """Print the table of runs."""
        table = Table(title="the runs, as they are stored", **_TABLE)
        table.add_column("run", justify="right")
        table.add_column("reason")
        for name in ("wall", "start", "peak memory", "CPU", "state", "modules"):
            table.add_column(name, justify="right")
        for run in runs:
            usage = run.attempt.usage
            table.add_row(
                str(run.number),
                Text(str(run.task.reason), "" if run.succeeded else "bold red"),
                _or_dash(usage.wall_seconds, seconds_text),
                _or_dash(usage.container_start_seconds, seconds_text),
                _or_dash(usage.peak_memory_bytes, size_text),
                _or_dash(usage.cpu_seconds, seconds_text),
                _or_dash(run.state_bytes, size_text),
                _or_dash(run.modules, str),
            )
        self._console.print()
        self._console.print(table)

    def findings(self, state: dict[str, Any], where: str) -> None:
        """Print what the agent found.

        Args:
            state: The state of the stored artifact.
            where: Names that artifact.
        """
        counts = state["counts"]
        unreadable = state["unreadable"]["count"]
        parsed = f"{unreadable} modules could not be parsed" if unreadable else "every module could be parsed"
        self._console.print()
        self._line(f"the findings, as they are stored in {where}", "italic")
        self._console.print()
        self._line(
            f"  {counts['modules']} modules of Python {state['python']}: {counts['lines']:,} lines, "
            f"{counts['classes']:,} classes, {counts['functions']:,} functions"
        )
        self._line(
            f"  {_percent(counts['documented'], counts['public'])} of {counts['public']:,} public modules, classes "
            "and functions have a docstring"
        )
        self._line(
            f"  {parsed}; mean complexity of a function "
            f"{counts['complexity'] / max(counts['functions'], 1):.1f}"
        )
        for what, key in (("longest function", "longest"), ("largest module", "largest")):
            self._line(f"  {what}: {state[key][0]['name']}, {state[key][0]['lines']:,} lines")
        table = Table(**_TABLE)
        table.add_column("most complex functions", overflow="fold")
        table.add_column("complexity", justify="right")
        table.add_column("lines", justify="right")
        for entry in state["most_complex"][:_SHOWN_FINDINGS]:
            table.add_row(Text(entry["name"]), str(entry["complexity"]), str(entry["lines"]))
        self._console.print()
        self._console.print(table)

    def verdict(self, checks: Sequence[Check]) -> None:
        """Print what was checked, and how it came out."""
        self._console.print()
        for check in checks:
            self._line(
                f"{'ok' if check.as_expected else 'NOT OK':<7}{check.text}",
                "green" if check.as_expected else "bold red",
            )

    def next_steps(self, commands: Sequence[str]) -> None:
        """Print what to try next, ready to be copied."""
        self._console.print()
        self._line("What to try next:", "bold")
        for command in commands:
            self._line(f"  {command}")

    def _line(self, text: str, style: str = "") -> None:
        # One line stays one line: in a log it can be searched for, and a terminal breaks it by itself.
        self._console.print(Text(text, style), soft_wrap=True)

    @property
    def _prose_width(self) -> int:
        return min(self._console.width, MAX_PROSE_WIDTH)


def _or_dash(value: Any, render: Callable[[Any], str]) -> str:
    return "-" if value is None else render(value)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
