"""``harness agents``: what runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import inputs, text
from harness.cli.options import AgentArgument, JsonOption, LimitOption, OffsetOption, group
from harness.cli.render import (
    note,
    note_rest,
    print_fields,
    print_json,
    print_json_section,
    print_model,
    print_page_json,
    print_section,
    print_table,
    say,
)
from harness.cli.schedule import fires_text
from harness.cli.session import EXIT_FAILED, find_agent, open_api, run_async
from harness.errors import InvalidInputError

if TYPE_CHECKING:
    from harness.api import HarnessApi
    from harness.models import Agent, AgentDraft, Page

#: The file of a folder that is run where nothing else is said.
DEFAULT_ENTRYPOINT = "main.py"

#: How many fires of a schedule are shown.
SHOWN_FIRES = 3

app = group("Create, look at, change and delete agents.")

CodeOption = Annotated[
    str | None,
    typer.Option("--code", metavar="FILE", help="Python source of a one-file agent; - reads standard input."),
]
FolderOption = Annotated[
    str | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Folder of an agent of several files: all text files below it but __pycache__ and names that begin with a dot.",
    ),
]
EntrypointOption = Annotated[
    str | None,
    typer.Option(
        "--entrypoint", metavar="PATH", help=f"The file of --folder to run; {DEFAULT_ENTRYPOINT} if left out."
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="Config as YAML, or as JSON in a .json file; - reads standard input."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set one value of the config, as in limits.timeout_seconds=60; null removes it. Can be repeated.",
    ),
]
VersionOption = Annotated[
    int | None,
    typer.Option("--if-version", metavar="N", min=1, help="Change it only if it is still at this version."),
]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new, unique name.")],
    *,
    code: CodeOption = None,
    folder: FolderOption = None,
    entrypoint: EntrypointOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an agent.

    It needs one of --code, --folder, or a config with a command (any program, in the image that the config names).

    \b
    Examples:
      harness agents create greeter --code greeter.py
      harness agents create crawler --folder crawler/ --config crawler.yaml
      harness agents create poller --code - --set limits.cpus=0.5 < poller.py
      harness agents create nightly --code nightly.py --config nightly.yaml
    """
    _check_one_reader(code, config)
    draft = _draft(
        {"name": name, **_program(code, folder, entrypoint), "config": _config({}, config, settings)}
    )

    async def work() -> tuple[Agent, str]:
        async with open_api() as api:
            agent = await api.create_agent(draft)
            return agent, await _fires_text(api, agent)

    _show_changed(*run_async(work), "created", as_json=as_json)


@app.command("list")
def list_(*, limit: LimitOption = 100, offset: OffsetOption = 0, as_json: JsonOption = False) -> None:
    """List agents, the newest first.

    \b
    Examples:
      harness agents list --limit 20
      harness agents list --json | jq '.items[].name'
    """

    async def work() -> Page[Agent]:
        async with open_api() as api:
            return await api.list_agents(limit=limit, offset=offset)

    page = run_async(work)
    if as_json:
        print_page_json(page)
        return
    rows = [
        [
            str(agent.id),
            agent.name,
            _kind(agent),
            text.schedule_text(agent.config),
            str(agent.version),
            text.instant_text(agent.updated_at),
        ]
        for agent in page.items
    ]
    print_table(["ID", "NAME", "PROGRAM", "SCHEDULE", "VERSION", "UPDATED"], rows, give_way="NAME")
    note_rest(page)


@app.command("show")
def show(agent: AgentArgument, *, as_json: JsonOption = False) -> None:
    """Show an agent with its config and its code.

    The values of config.env are hidden, since they are often secrets; --json shows them.

    \b
    Examples:
      harness agents show greeter
      harness agents show 3 --json | jq -r .code
    """

    async def work() -> tuple[Agent, str]:
        async with open_api() as api:
            found = await find_agent(api, agent)
            return found, await _fires_text(api, found)

    found, fires = run_async(work)
    if as_json:
        print_model(found)
        return
    print_fields(
        {
            "id": str(found.id),
            "name": found.name,
            "version": str(found.version),
            "program": _kind(found),
            "schedule": text.schedule_text(found.config),
            "next fires": fires.removeprefix("next fires: "),
            "created": text.instant_text(found.created_at),
            "updated": text.instant_text(found.updated_at),
        }
    )
    print_json_section("config", _without_secrets(found.config))
    for path, source in ({"code": found.code} if found.code else found.files).items():
        print_section(path, source)


@app.command("update")
def update(  # noqa: PLR0913 - one for each option
    agent: AgentArgument,
    *,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="A new name.")] = None,
    code: CodeOption = None,
    folder: FolderOption = None,
    entrypoint: EntrypointOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    if_version: VersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change an agent. What is not given stays; --config replaces the whole config, --set changes single values.

    \b
    Examples:
      harness agents update greeter --code greeter.py
      harness agents update greeter --set limits.cpus=2 --set env.CITY=Oslo
      harness agents update 3 --config new.yaml --if-version 7
    """
    if all(given is None for given in (name, code, folder, entrypoint, config, settings)):
        raise InvalidInputError(
            "nothing to change: give --name, --code, --folder, --entrypoint, --config or --set"
        )
    _check_one_reader(code, config)
    changes: dict[str, Any] = {} if name is None else {"name": name}
    if code is not None or folder is not None:
        changes |= _program(code, folder, entrypoint)
    # Read before anything is opened: standard input may take its time.
    base = None if config is None else inputs.read_config(config)

    async def work() -> tuple[Agent, str]:
        async with open_api() as api:
            before = await find_agent(api, agent)
            fields = before.model_dump(include={"name", "code", "files", "entrypoint", "config"}) | changes
            if entrypoint is not None and folder is None:
                fields["entrypoint"] = entrypoint
            elif folder is not None and entrypoint is None and before.entrypoint in fields["files"]:
                fields["entrypoint"] = before.entrypoint
            fields["config"] = inputs.apply_settings(before.config if base is None else base, settings or ())
            version = before.version if if_version is None else if_version
            after = await api.update_agent(before.id, _draft(fields), expected_version=version)
            return after, await _fires_text(api, after)

    _show_changed(*run_async(work), "updated", as_json=as_json)


@app.command("delete")
def delete(
    agent: AgentArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an agent with its tasks, logs and handoff artifacts. There is no way back.

    \b
    Examples:
      harness agents delete greeter
      harness agents delete 3 --yes
    """
    if not yes and not sys.stdin.isatty():
        raise InvalidInputError("deleting asks first, and there is no terminal to answer on; give --yes")

    async def look_up() -> Agent:
        async with open_api() as api:
            return await find_agent(api, agent)

    found = run_async(look_up)
    question = f"Delete agent {found.id} ({text.neutralize(found.name)}) with its tasks, logs and artifacts?"
    if not yes and not typer.confirm(question, err=True):
        note("nothing was deleted")
        raise typer.Exit(EXIT_FAILED)

    async def work() -> None:
        async with open_api() as api:
            await api.delete_agent(found.id)

    run_async(work)
    if as_json:
        print_json({"id": found.id, "name": found.name, "deleted": True})
    else:
        say(f"agent {found.id} ({found.name}) deleted")


def _check_one_reader(code: str | None, config: str | None) -> None:
    if code == config == "-":
        raise InvalidInputError("standard input can be read once: give --code or --config a file")


def _program(code: str | None, folder: str | None, entrypoint: str | None) -> dict[str, Any]:
    if code is not None and folder is not None:
        raise InvalidInputError("give --code or --folder, not both")
    if folder is not None:
        files = inputs.read_folder(folder)
        return {"code": "", "files": files, "entrypoint": entrypoint or DEFAULT_ENTRYPOINT}
    if entrypoint is not None:
        raise InvalidInputError("--entrypoint names a file of --folder; give that as well")
    if code is not None:
        return {"code": inputs.read_code(code), "files": {}, "entrypoint": None}
    return {}


def _config(base: Mapping[str, Any], source: str | None, settings: list[str] | None) -> dict[str, Any]:
    return inputs.apply_settings(base if source is None else inputs.read_config(source), settings or ())


def _draft(fields: Mapping[str, Any]) -> AgentDraft:
    from pydantic import ValidationError

    from harness.config import describe_problems
    from harness.models import AgentDraft

    try:
        return AgentDraft.model_validate(dict(fields))
    except ValidationError as error:
        # A finding about the whole agent has no path, and "value" says nothing to the reader.
        raise InvalidInputError(describe_problems(error).removeprefix("value: ")) from error


async def _fires_text(api: HarnessApi, agent: Agent) -> str:
    return "" if agent.options.schedule is None else await fires_text(api, agent)


def _show_changed(agent: Agent, fires: str, verb: str, *, as_json: bool) -> None:
    if as_json:
        print_model(agent)
        return
    say(f"agent {agent.id} ({agent.name}) {verb}, version {agent.version}")
    if fires:
        say(fires)


def _kind(agent: Agent) -> str:
    if agent.files:
        return f"{len(agent.files)} files, {agent.entrypoint}"
    if agent.code:
        return f"code, {text.size_text(len(agent.code.encode()))}"
    return f"command {' '.join(agent.config.get('command') or ())}"


def _without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    env = config.get("env")
    hidden = {"env": dict.fromkeys(env, "(hidden)")} if isinstance(env, Mapping) and env else {}
    return {**config, **hidden}
