"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

#: SQLite's largest integer.
MAX_ID = 2**63 - 1

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Id or name of the agent.")]
TaskArgument = Annotated[int, typer.Argument(metavar="TASK", min=1, max=MAX_ID, help="Id of the task.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=1000, help="Print at most this many.")]
OffsetOption = Annotated[
    int, typer.Option("--offset", min=0, max=MAX_ID, help="Leave out this many, from the newest.")
]


def group(help_text: str) -> typer.Typer:
    """Make the group of commands for one noun."""
    return typer.Typer(
        help=help_text, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
