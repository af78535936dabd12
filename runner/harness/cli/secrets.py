"""``harness secrets``: what agents need and nobody may read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import inputs, text
from harness.cli.options import MAX_ID, JsonOption, LimitOption, group
from harness.cli.render import note_rest, print_json, print_model, print_page_json, print_table, say
from harness.cli.session import check_text, open_api, open_store, run_async

if TYPE_CHECKING:
    from harness.models import Page
    from harness.secrets.info import SecretInfo

app = group("Store what agents need and nobody may read, encrypted under HARNESS_SECRETS_KEY.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the secret.")]


@app.command("set")
def set_(name: NameArgument, *, as_json: JsonOption = False) -> None:
    """Store a secret, or give it another value.

    The value is asked for without an echo, or else read from standard input, where one line end at its end is left
    out. It is no argument, since others can see those.

    \b
    Examples:
      harness secrets set github-token
      harness secrets set deploy-key < id_ed25519
      harness agents update greeter --set secrets.TOKEN=github-token
    """
    check_text(name, what="NAME")
    value = _read_value()

    async def work() -> SecretInfo:
        async with open_api() as api:
            return await api.put_secret(name, value)

    stored = run_async(work)
    if as_json:
        print_model(stored)
    else:
        say(f"secret {stored.name} stored")


@app.command("list")
def list_(
    *,
    limit: LimitOption = 100,
    offset: Annotated[
        int, typer.Option("--offset", min=0, max=MAX_ID, help="Leave out this many, from the first.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """List secrets by name, without their values: those are never shown.

    \b
    Example:
      harness secrets list
    """

    async def work() -> Page[SecretInfo]:
        async with open_api() as api:
            return await api.list_secrets(limit=limit, offset=offset)

    page = run_async(work)
    if as_json:
        print_page_json(page)
        return
    rows = [
        [secret.name, text.instant_text(secret.created_at), text.instant_text(secret.updated_at)]
        for secret in page.items
    ]
    print_table(["NAME", "CREATED", "SET"], rows, give_way="NAME")
    note_rest(page)


@app.command("delete")
def delete(name: NameArgument, *, as_json: JsonOption = False) -> None:
    """Delete a secret. Runs of agents that name it fail from now on.

    \b
    Example:
      harness secrets delete github-token
    """
    check_text(name, what="NAME")

    async def work() -> None:
        async with open_api() as api:
            await api.delete_secret(name)

    run_async(work)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        say(f"secret {name} deleted")


@app.command("keygen")
def keygen() -> None:
    """Print a new key for HARNESS_SECRETS_KEY. It is stored nowhere; without it secrets can't be read again.

    \b
    Example:
      harness secrets keygen > secrets.key
    """
    from harness.secrets.cipher import generate_key

    typer.echo(generate_key())


@app.command("rotate")
def rotate(*, as_json: JsonOption = False) -> None:
    """Encrypt all secrets anew under the first key of HARNESS_SECRETS_KEY.

    Before: put the new key behind the old one for every server and runner, and restart them; then before it, and
    restart them again. Afterwards: leave the old one out.

    \b
    Example:
      harness secrets rotate
    """

    async def work() -> int:
        from harness.settings import get_settings
        from harness.vault import SecretVault

        async with open_store() as store:
            return await SecretVault(store, get_settings()).rotate()

    count = run_async(work)
    if as_json:
        print_json({"rotated": count})
    else:
        say(f"{count} secrets encrypted anew")


def _read_value() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Value", hide_input=True, confirmation_prompt=True, err=True))
    from harness.secrets.rules import MAX_VALUE_BYTES

    value = inputs.read_text("-", what="value", max_bytes=MAX_VALUE_BYTES + 2)
    return value.removesuffix("\n").removesuffix("\r")
