"""``harness audit``: who changed what through the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import text
from harness.cli.options import MAX_ID, JsonOption, LimitOption
from harness.cli.render import note, print_json, print_table
from harness.cli.session import open_api, run_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.audit import AuditEntry


def audit(
    *,
    limit: LimitOption = 100,
    before_id: Annotated[
        int | None,
        typer.Option("--before", metavar="ID", min=1, max=MAX_ID, help="Only older lines than this."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List who changed what, through the API or by this command line, the newest first.

    STATUS is that of the answer: below 300 it was done; 403: refused, the token's scope did not reach; from 500 on it may
    have been done.

    \b
    Examples:
      harness audit --limit 20
      harness audit --before 1200 --json
    """

    async def work() -> Sequence[AuditEntry]:
        async with open_api() as api:
            return await api.list_audit(limit=limit, before_id=before_id)

    entries = run_async(work)
    if as_json:
        print_json({"entries": [entry.model_dump(mode="json") for entry in entries]})
        return
    rows = [
        (
            str(entry.id),
            text.instant_text(entry.at),
            entry.actor,
            entry.peer,
            entry.action,
            entry.made or entry.target,
            str(entry.status),
        )
        for entry in entries
    ]
    print_table(("ID", "AT", "WHO", "FROM", "ACTION", "TARGET", "STATUS"), rows, give_way="TARGET")
    if not entries:
        note("none found")
