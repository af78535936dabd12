"""``harness tokens``: who may use the API. On the store itself it needs no token, so that nobody is ever locked out."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import text
from harness.cli.options import MAX_ID, JsonOption, LimitOption, OffsetOption, group
from harness.cli.render import note, note_rest, print_model, print_page_json, print_table, say
from harness.cli.session import check_text, open_api, run_async
from harness.errors import InvalidInputError

if TYPE_CHECKING:
    from datetime import datetime

    from harness.models import Page
    from harness.tokens import ApiToken, CreatedToken, TokenDraft

app = group("Make, list and revoke the tokens that the API asks for.")


class ScopeOption(StrEnum):
    """Each includes those before it."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people: who uses it, and where.")],
    *,
    scope: Annotated[
        ScopeOption,
        typer.Option(
            "--scope",
            help="read looks; run also runs, cancels and retries; admin also changes agents, schedules, handoffs and tokens.",
        ),
    ],
    expires_days: Annotated[
        float | None,
        typer.Option(
            "--expires-days", metavar="DAYS", min=0.001, max=36500, help="Until when; for ever if left out."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token, and print it: this once, since only a hash of it is kept.

    From the first token on, every server of the store asks for one, also on its own machine, and goes on asking when all
    have expired or are revoked; make another one here then.

    \b
    Examples:
      harness tokens create grafana --scope read
      harness tokens create ci --scope run --expires-days 90
    """
    expires_at = None if expires_days is None else _now() + timedelta(days=expires_days)
    draft = _draft(name, scope, expires_at)

    async def work() -> CreatedToken:
        async with open_api() as api:
            return await api.create_token(draft)

    made = run_async(work)
    if as_json:
        print_model(made)
        return
    until = (
        "" if made.token.expires_at is None else f"; it expires {text.instant_text(made.token.expires_at)}"
    )
    note(f"token {made.token.id} ({made.token.name}) with the scope {made.token.scope}{until}")
    note("keep it now, it is not shown again:")
    say(made.text)


@app.command("list")
def list_(*, limit: LimitOption = 100, offset: OffsetOption = 0, as_json: JsonOption = False) -> None:
    """List tokens, the newest first: what each may do, until when, and when it was last used.

    \b
    Example:
      harness tokens list
    """

    async def work() -> Page[ApiToken]:
        async with open_api() as api:
            return await api.list_tokens(limit=limit, offset=offset)

    page, now = run_async(work), _now()
    if as_json:
        print_page_json(page)
        return
    rows = [
        (
            str(token.id),
            token.name,
            token.scope,
            _status(token, now),
            text.instant_text(token.expires_at),
            text.instant_text(token.last_used_at),
        )
        for token in page.items
    ]
    print_table(("ID", "NAME", "SCOPE", "STATUS", "EXPIRES", "LAST USED"), rows, give_way="NAME")
    note_rest(page)


@app.command("revoke")
def revoke(
    token: Annotated[int, typer.Argument(metavar="TOKEN", min=1, max=MAX_ID, help="Id of the token.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a token invalid for good, at once, on every server of the store.

    \b
    Example:
      harness tokens revoke 3
    """

    async def work() -> ApiToken:
        async with open_api() as api:
            return await api.revoke_token(token)

    revoked = run_async(work)
    if as_json:
        print_model(revoked)
    else:
        say(f"token {revoked.id} ({revoked.name}) is revoked")


def _draft(name: str, scope: ScopeOption, expires_at: datetime | None) -> TokenDraft:
    from pydantic import ValidationError

    from harness.config import describe_problems
    from harness.tokens import TokenDraft

    check_text(name, what="NAME")
    try:
        return TokenDraft(name=name, scope=scope.value, expires_at=expires_at)
    except ValidationError as error:
        raise InvalidInputError(f"NAME is not valid: {describe_problems(error)}") from None


def _status(token: ApiToken, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.is_valid(now) else "expired"


def _now() -> datetime:
    from harness.clock import SystemClock

    return SystemClock().now()
