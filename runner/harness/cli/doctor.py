"""``harness doctor``: is everything there that runs need?"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import JsonOption
from harness.cli.render import print_json, print_styled
from harness.cli.session import EXIT_FAILED, note_that_it_is_local, run_async
from harness.errors import SettingsError

if TYPE_CHECKING:
    from harness.cli.findings import CheckResult

_NAME_WIDTH = len("data directory")
_WORD_WIDTH = len("PROBLEM")


def doctor(
    *,
    no_run: Annotated[bool, typer.Option("--no-run", help="Start no container.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything that runs on this machine need, and say what to do.

    Settings, data directory, store, engine, its versions, limits and lock-downs, the image, a run, containers left behind.
    One line per check, with the time it took. A warning is something to look at: versions with known escapes, say. The
    exit code is 1 when there is a problem.

    \b
    Examples:
      harness doctor
      harness doctor --json | jq '.checks[] | select(.status == "problem")'
    """
    with suppress(SettingsError):  # it is one of the checks
        note_that_it_is_local()

    async def work() -> list[CheckResult]:
        from harness.cli.checks import Doctor

        found = []
        async for result in Doctor(with_run=not no_run).results():
            found.append(result)
            if not as_json:
                _print_result(result)
        return found

    results = run_async(work)
    is_well = all(result.status != "problem" for result in results)
    if as_json:
        print_json({"ok": is_well, "checks": [asdict(result) for result in results]})
    if not is_well:
        raise typer.Exit(EXIT_FAILED)


def _print_result(result: CheckResult) -> None:
    took = "" if result.status == "skipped" else f" ({result.duration_seconds * 1000:.0f} ms)"
    word = result.status.upper().ljust(_WORD_WIDTH)
    print_styled(
        f"{word} {result.name.ljust(_NAME_WIDTH)}  ", f"{result.detail}{took}", style_of=word.strip()
    )
    if result.remedy is not None:
        print_styled(" " * (_WORD_WIDTH + 1), f"remedy: {result.remedy}")
