"""A canary put through agents that print it in every way: it is nowhere in what anybody can read afterwards."""

from __future__ import annotations

import asyncio
import base64
import html
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import aiohttp
import pytest
from docker import APIClient
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from tests.mongo import MongoServer
from tests.sandboxes import used_store_ids
from tests.services import Service, Site

from harness.client import HarnessClient
from harness.clock import SystemClock
from harness.errors import InvalidInputError, SecretKeyError, SecretNotFoundError
from harness.models import Agent, AgentDraft, LogChunk, Reason, Task, TaskStatus
from harness.secrets.cipher import generate_key
from harness.settings import Settings
from harness.wiring import make_sandbox, make_store
from harness_server.routes import ENDPOINTS

#: Long runs of a busy machine.
pytestmark = pytest.mark.timeout(240)

WAIT_SECONDS = 60

CANARY = "cAnArY \"7' & <ö>/\\tail-4f9aK2m8"
KEY = "-----BEGIN CANARY KEY-----\nMIIBOgIBAAJBAKj34GkxFhD90vcN\nLYLInFEX6Ppy1tPf9Cnzj4p4WGeK\n-----END CANARY KEY-----\n"

#: What it does is in its context; every way out is one that agents use.
PRINTER = r"""
import base64, html, json, logging, os, subprocess, sys, time, urllib.parse
import handoff

def write(stream, text):
    stream.write(text)
    stream.flush()

def print_in_every_way(secret):
    half = len(secret) // 2
    for stream in (sys.stdout, sys.stderr):
        write(stream, f"whole {secret}\n")
        for character in secret:
            write(stream, character)
        # Over several flushes of the recorder.
        write(stream, f"\nslow {secret[:half]}")
        time.sleep(0.6)
        write(stream, secret[half:])
        time.sleep(0.3)
        write(stream, "\n")
        # Over the edges of chunks.
        for size in range(65536 - len(secret), 65536, 7):
            write(stream, "x" * size + secret + "\n")
        spellings = (
            json.dumps(secret), json.dumps(secret, ensure_ascii=False), json.dumps({"b": json.dumps([secret])}),
            repr(secret), repr(f"it's {secret}"), repr(f"\"' {secret}"), ascii(secret), repr(secret.encode()),
            html.escape(secret), html.escape(secret, quote=False), secret.encode().hex(),
            urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), urllib.parse.urlencode({"q": secret}),
            base64.b64encode(secret.encode()).decode(), base64.b64encode(b"me:" + secret.encode()).decode(),
        )
        for spelling in spellings:
            write(stream, f"{spelling}\n{spelling[:9]}")
            write(stream, f"{spelling[9:]}\n")
    for one, other in zip(secret, secret):
        write(sys.stdout, one)
        write(sys.stderr, other)
    write(sys.stdout, f"\n{secret[:half]}")
    write(sys.stderr, f"{secret[half:]}\n")
    write(sys.stdout, "\n")
    os.write(1, secret.encode()[:11])
    os.write(1, secret.encode()[11:] + b"\n")
    subprocess.run(["sh", "-c", 'printf "%s\n" "$TOKEN" "$KEY"; printf "%s" "$TOKEN" >&2'], check=True)
    logging.warning("with %s", secret)
    print(dict(os.environ), flush=True)

token, key = os.environ["TOKEN"], os.environ["KEY"]
mode = context["mode"]
if mode == "hold":
    print("begun", token, flush=True)
    time.sleep(60)
if mode in ("save", "end"):
    print_in_every_way(token)
    print_in_every_way(key)
else:
    print(token, key, repr(key), flush=True)
if mode == "save":
    handoff.save({"token": token, token: [key, {"deep": [f"at {token}"]}]}, f"done with {token}")
elif mode == "derive":
    print("HANDOFF_STATE " + json.dumps({"token": token, "lines": key}))
    print(f"the last line is {token}")
elif mode == "refuse":
    handoff.save({"token": token, "what": {1, 2}}, token)
elif mode == "raise":
    raise RuntimeError(f"denied: {token} and {key}")
elif mode == "exit":
    sys.exit(f"bye {token}")
elif mode == "end":
    write(sys.stdout, "cut " + token[:-1])
    os._exit(3)
"""


def spellings(secret: str) -> set[str]:
    text = secret.strip()
    as_json = json.dumps(text)[1:-1]
    return {
        text,
        as_json,
        json.dumps(as_json)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        repr(text)[1:-1].replace("\\'", "'"),
        ascii(text)[1:-1],
        repr(text.encode())[2:-1],
        html.escape(text),
        html.escape(text, quote=False),
        quote(text),
        quote(text, safe=""),
        quote_plus(text),
        text.encode().hex(),
        base64.b64encode(text.encode()).decode().rstrip("=")[:-1],
        base64.b64encode(b"me:" + text.encode()).decode().rstrip("=")[:-1],
    }


#: The canaries, every line of the long one, and every spelling of them.
NEEDLES = {needle.encode() for secret in (CANARY, *KEY.splitlines()) for needle in spellings(secret)}


def assert_clean(where: str, data: bytes | str) -> None:
    data = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    for needle in NEEDLES:
        at = data.find(needle)
        assert at < 0, f"{where}: {data[max(0, at - 60) : at + 120]!r}"


@pytest.fixture(params=["sqlite", "mongodb"])
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, sandbox_image: str, no_container_is_left: None
) -> AsyncIterator[Site]:
    """A store of either kind, and the processes on it; they have a key."""
    mongo = MongoServer(tmp_path / "mongodb")
    settings = Settings(data_dir=tmp_path / "data")
    if request.param == "mongodb":
        await asyncio.to_thread(mongo.start)
        settings = settings.model_copy(update={"mongodb_uri": SecretStr(mongo.uri)})
    store, sandbox = make_store(settings, SystemClock()), make_sandbox(settings, SystemClock())
    try:
        await store.open()
        used_store_ids.add(store.store_id)
        site = Site(tmp_path, settings, store, sandbox)
        site.environment["HARNESS_SECRETS_KEY"] = generate_key()
        if mongo.uri:
            site.environment["HARNESS_MONGODB_URI"] = mongo.uri
        try:
            yield site
        finally:
            await site.close()
        assert await site.containers() == 0
    finally:
        await store.close()
        await sandbox.close()
        await asyncio.to_thread(mongo.stop)


async def printer(client: HarnessClient) -> Agent:
    config = {
        "secrets": {"TOKEN": "token", "KEY": "deploy-key"},
        "limits": {"max_output_bytes": 16 * 1024 * 1024},
        "retry": {"max_attempts": 0},
    }
    return await client.create_agent(AgentDraft(name="printer", code=PRINTER, config=config))


async def run(client: HarnessClient, agent: Agent, mode: str) -> Task:
    task = await client.run(agent.id, {"mode": mode}, save_handoff=True, wait_seconds=WAIT_SECONDS)
    assert_clean(f"the answer to a run that should {mode}", task.model_dump_json())
    return task


async def test_a_canary_is_nowhere(site: Site) -> None:
    service = site.start("serve")
    async with HarnessClient(await service.url(), timeout_seconds=WAIT_SECONDS) as client:
        for name, value in (("token", CANARY), ("deploy-key", KEY)):
            assert_clean(
                "the answer to a new secret", (await client.put_secret(name, value)).model_dump_json()
            )
        agent = await printer(client)

        saved, derived, refused, raised, left, ended = [
            await run(client, agent, mode) for mode in ("save", "derive", "refuse", "raise", "exit", "end")
        ]
        held = await client.run(agent.id, {"mode": "hold"})
        await site.until_output(held.id, b"begun ***")
        await inspect_is_clean(site)
        await client.cancel_task(held.id)
        await site.until_status(held.id, TaskStatus.CANCELLED)

        assert (saved.status, saved.result) == (TaskStatus.COMPLETED, "done with ***")
        assert (derived.status, derived.result) == (TaskStatus.COMPLETED, "the last line is ***")
        assert refused.reason is Reason.STATE_REJECTED
        assert raised.error is not None
        assert "denied: *** and" in raised.error
        assert {left.reason, ended.reason} == {Reason.EXIT_NONZERO}
        states = [artifact.state for artifact in await client.handoff_history(agent.id)]
        assert states[-1] == {"token": "***", "***": ["***\n", {"deep": ["at ***"]}]}
        assert (states[0]["token"], states[0]["lines"]) == ("***", "***\n")

        tasks = [saved, derived, refused, raised, left, ended, held]
        for task in tasks:
            text = b"".join([chunk.data for chunk in await all_chunks(site, task)])
            assert_clean(f"the log of task {task.id}, each stream in its order", text)
            # It did print, and more than masks.
            assert text.count(b"***") > (100 if task in (saved, ended) else 0)
        await answers_are_clean(client, service, agent, tasks)
    await commands_are_clean(site, agent, tasks)
    await store_is_clean(site)
    await service.stop()
    assert_clean("the server's log", service.log.read_bytes())
    assert len(service.events("run_ended")) == len(tasks)
    await store_is_clean(site)


async def all_chunks(site: Site, task: Task) -> list[LogChunk]:
    chunks: list[LogChunk] = []
    while more := await site.store.read_logs(task.id, after_seq=chunks[-1].seq if chunks else -1):
        chunks.extend(more)
    return chunks


async def inspect_is_clean(site: Site) -> None:
    """Of the one that runs, and of those that wait."""
    containers = await site.sandbox.owned_containers(site.store.store_id)
    assert containers
    for container in containers:
        for ask in (APIClient.inspect_container, APIClient.top):
            said = await site.sandbox.engine.call(ask, container.container_id)
            assert_clean(ask.__name__, json.dumps(said))
            assert_clean(ask.__name__, json.dumps(said, ensure_ascii=False))


def get_paths(agent: Agent, tasks: list[Task]) -> Iterator[str]:
    yield from ("/healthz", "/readyz", "/metrics", "/api/openapi.json", "/api/docs")
    for endpoint in (
        endpoint for group in ENDPOINTS.values() for endpoint in group if endpoint.method == "GET"
    ):
        path = endpoint.path.replace("{agent_id}", str(agent.id)).replace("{secret_name}", "token")
        for task in tasks if "{task_id}" in path else tasks[:1]:
            for query in ("", "?follow=false", "?before=1"):
                yield path.replace("{task_id}", str(task.id)) + query


async def answers_are_clean(client: HarnessClient, service: Service, agent: Agent, tasks: list[Task]) -> None:
    seen = 0
    async with aiohttp.ClientSession(await service.url()) as session:
        for path in get_paths(agent, tasks):
            async with session.get(path) as answer:
                body = await answer.read()
            seen += answer.status == 200
            assert_clean(f"GET {path}", body)
            assert_clean(f"GET {path}, its headers", repr(answer.raw_headers))
        wrong: tuple[dict[str, object], ...] = (
            {"value": CANARY[:7]},
            {"value": [CANARY]},
            {"value": CANARY + "\0"},
            {"valu": CANARY},
        )
        for given in wrong:
            async with session.put("/api/secrets/token", json=given) as answer:
                assert answer.status == 422
                assert CANARY[:7] not in (await answer.json())["detail"]
                assert_clean("a refusal", await answer.read())
    assert seen > 20
    with pytest.raises(InvalidInputError, match="no name"):
        await client.put_secret("../agents", CANARY)


async def commands_are_clean(site: Site, agent: Agent, tasks: list[Task]) -> None:
    for command in (
        ["run", str(agent.id), "--context", '{"mode": "save"}'],
        ["run", str(agent.id), "--context", '{"mode": "derive"}', "--json"],
        *(["logs", str(task.id)] for task in tasks),
        *(["tasks", "show", str(task.id), "--json"] for task in tasks),
        ["handoff", "history", str(agent.id), "--json"],
        ["secrets", "list", "--json"],
    ):
        assert_clean(f"harness {' '.join(command)}", await site.command(*command))


async def store_is_clean(site: Site) -> None:
    if uri := site.environment.get("HARNESS_MONGODB_URI"):
        client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(uri)
        database = client["agent_harness"]
        names = await database.list_collection_names()
        for name in names:
            for document in await database[name].find().to_list():
                assert_clean(f"the collection {name}", repr(document))
                assert_clean(f"the collection {name}", b"".join(bytes_in(document)))
        await client.close()
        assert {"secrets", "logs", "tasks", "artifacts"} <= set(names)
    for path in site.folder.rglob("*"):
        if path.is_file():
            assert_clean(f"the file {path.relative_to(site.folder)}", path.read_bytes())


def bytes_in(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*bytes_in(key), *bytes_in(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from bytes_in(inner)


async def test_secrets_over_http(site: Site) -> None:
    service = site.start("serve")
    async with HarnessClient(await service.url()) as client:
        first = await client.put_secret("b", CANARY)
        await client.put_secret("a", KEY)
        again = await client.put_secret("b", KEY)
        page = await client.list_secrets(limit=1, offset=1)
        await client.delete_secret("b")

        assert (again.created_at, again.updated_at > first.updated_at) == (first.created_at, True)
        assert (page.items, page.total_count) == ((again,), 2)
        with pytest.raises(SecretNotFoundError, match="'b'"):
            await client.delete_secret("b")
        with pytest.raises(InvalidInputError, match="too short"):
            await client.put_secret("c", "short")


async def test_without_a_key_a_server_stores_no_secret_and_a_run_says_what_is_missing(site: Site) -> None:
    await site.command("secrets", "keygen")
    del site.environment["HARNESS_SECRETS_KEY"]
    service = site.start("serve")
    async with HarnessClient(await service.url()) as client:
        agent = await client.create_agent(
            AgentDraft(
                name="a", code="pass", config={"secrets": {"T": "token"}, "retry": {"max_attempts": 0}}
            )
        )
        with pytest.raises(SecretKeyError, match="harness secrets keygen"):
            await client.put_secret("token", CANARY)

        task = await client.run(agent.id, wait_seconds=WAIT_SECONDS)

    assert task.reason is Reason.SANDBOX_ERROR
    assert task.error == "there is no secret 'token'; store it with: harness secrets set token"


async def test_a_server_with_a_key_file_of_no_use_does_not_start(site: Site, tmp_path: Path) -> None:
    del site.environment["HARNESS_SECRETS_KEY"]
    for command in ("serve", "runner"):
        service = site.start(command, HARNESS_SECRETS_KEY_FILE=str(tmp_path / "nothing"))

        assert await service.ended() == 2
        assert "HARNESS_SECRETS_KEY_FILE" in service.log.read_text()
