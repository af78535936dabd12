"""The command tree, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from harness.cli import (
    agents,
    audit,
    doctor,
    handoff,
    images,
    purge,
    run,
    runner,
    schedule,
    secrets,
    socketproxy,
    tasks,
    tokens,
)
from harness.cli.render import note
from harness.cli.session import (
    EXIT_BROKEN_PIPE,
    EXIT_CODES_HELP,
    EXIT_FAILED,
    EXIT_INVALID,
    StoppedBySignalError,
    complain,
    exit_code,
    mute,
    prepare_streams,
)
from harness.errors import HarnessError

# Newer releases of Typer carry a copy of click, older ones import it; this is click's root error in both.
_CLICK_ERROR: type[Exception] = typer.BadParameter.mro()[2]

#: Entry points of this group are functions that typer makes commands of.
COMMANDS_GROUP = "harness.commands"

_HELP = f"""Run autonomous agents, each run in a throwaway Docker container.

With HARNESS_URL set, agents, run, tasks, logs, handoff and schedule speak to that `harness serve`, with the token in
HARNESS_TOKEN; without, they work on this machine's store.

AGENT is an agent's id or its name. With --json a command prints one JSON document to standard output, or after an
error {{"error": {{"code": …, "message": …}}}} as the last line of standard error.

\b
Examples:
  harness doctor
  harness agents create greeter --code greeter.py
  harness run greeter
  harness logs 1
  harness serve

{EXIT_CODES_HELP}
"""


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callbacks are called by position
    if wanted:
        from importlib.metadata import version

        typer.echo(f"harness {version('agent-harness')}")
        raise typer.Exit


def _root(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options that come before a command."""


def build_app() -> typer.Typer:
    """Put the command tree together."""
    app = typer.Typer(
        help=_HELP,
        callback=_root,
        no_args_is_help=True,
        add_completion=False,
        # Plain help pages need no rich, so they come at once, and they read the same in a pipe.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.add_typer(agents.app, name="agents")
    app.command("run")(run.run)
    app.add_typer(tasks.app, name="tasks")
    app.command("logs")(tasks.logs)
    app.add_typer(handoff.app, name="handoff")
    app.add_typer(images.app, name="images")
    app.add_typer(schedule.app, name="schedule")
    app.add_typer(secrets.app, name="secrets")
    app.command("purge")(purge.purge)
    app.add_typer(tokens.app, name="tokens")
    app.command("audit")(audit.audit)
    app.command("runner")(runner.runner)
    app.command("socket-proxy")(socketproxy.socket_proxy)
    app.command("doctor")(doctor.doctor)
    _add_installed_commands(app)
    return app


def _add_installed_commands(app: typer.Typer) -> None:
    """Add the commands of other packages, such as the server's; the library itself imports none of them."""
    for entry in entry_points(group=COMMANDS_GROUP):
        try:
            app.command(entry.name)(entry.load())
        except Exception as error:  # noqa: BLE001 - one broken package must not take the other commands along
            note(f"the command {entry.name!r} ({entry.value}) can't be loaded: {error}", label="warning:")


def invoke(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors raised on purpose are printed, anything else is a bug and raised.

    Args:
        arguments: The command line without the program's name.
    """
    prepare_streams()
    as_json = "--json" in arguments
    try:
        code = build_app()(args=arguments, prog_name="harness", standalone_mode=False)
        sys.stdout.flush()
    except HarnessError as error:
        complain(error.message, code=error.code, as_json=as_json)
        return exit_code(error)
    except _CLICK_ERROR as error:
        return _usage_error(error, as_json=as_json)
    except (typer.Abort, KeyboardInterrupt):
        complain("interrupted", code="interrupted", as_json=as_json)
        return 130
    except StoppedBySignalError as error:
        complain(str(error), code="interrupted", as_json=as_json)
        return 128 + error.number
    except (BrokenPipeError, SystemExit):
        # Typer itself turns a broken pipe into an exit, also where it is told to leave errors alone.
        mute(sys.stdout)
        return EXIT_BROKEN_PIPE
    except OSError as error:
        mute(sys.stdout)
        complain(f"the operating system refused: {error}", code="os_error", as_json=as_json)
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _usage_error(error: Exception, *, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError" and not as_json:
        # Its message is the whole help page.
        typer.echo(message, err=True)
        return EXIT_INVALID
    if context is not None and not as_json:
        message = f"{message} (see: {context.command_path} --help)"
    complain(message, code="usage", as_json=as_json)
    return EXIT_INVALID
