"""docs/api.md: its examples run as they stand, and its table has every endpoint."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.services import Server, running_server

from harness_server.openapi import make_document
from harness_server.routes import ENDPOINTS

TEXT = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text()
URL = "http://127.0.0.1:8000"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def server(tmp_path: Path, no_container_is_left: None) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        yield server


def run(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def documents(text: str) -> Iterator[Any]:
    """JSON documents, and in between other lines, one after the other."""
    decoder, rest = json.JSONDecoder(), text
    while rest:
        if rest.startswith("{"):
            value, end = decoder.raw_decode(rest)
            yield value
            rest = rest[end:].lstrip("\n")
        else:
            line, _, rest = rest.partition("\n")
            yield line


def test_the_curl_lines_do_what_they_say(server: Server) -> None:
    printed = run(["sh", "-eu", "-c", block("sh").replace(URL, server.url)])

    agent, task, log, page, schedule, artifact = documents(printed)
    assert (agent["id"], agent["name"]) == (1, "greeter")
    assert (task["status"], task["result"]) == ("completed", "hello Oslo")
    assert log == "hello Oslo"
    assert (page["total_count"], page["limit"]) == (1, 10)
    assert (schedule["status"], schedule["schedule"]["timezone"]) == ("in_force", "Europe/Oslo")
    assert (artifact["state"], artifact["summary"]) == ({"count": 3}, "set by hand")


def test_the_program_prints_what_its_agent_does(server: Server) -> None:
    printed = run([sys.executable, "-c", block("python").replace(URL, server.url)])

    assert printed == "completed 6\n6\n"


def test_the_problem_document_is_what_the_server_answers(server: Server) -> None:
    example = json.loads(block("json"))

    async def refused() -> Any:
        body = {"name": "a", "code": "1", "config": {"limits": {"cpus": -1}}}
        url = f"{server.url}/api/agents"
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            return await answer.json()

    problem = asyncio.run(refused())
    assert {**problem, "request_id": ""} == {**example, "request_id": ""}


def test_the_table_has_every_endpoint_as_openapi_describes_it() -> None:
    """After a change, put the expected lines into the document."""
    paths = make_document(ENDPOINTS)["paths"]
    expected = [
        f"| `{endpoint.method} {endpoint.path}` | {endpoint.scope.name.lower()} | "
        f"{paths[endpoint.path][endpoint.method.lower()]['summary']} |"
        for endpoints in ENDPOINTS.values()
        for endpoint in endpoints
    ]

    assert re.findall(r"^\| `[A-Z]+ /.*\|$", TEXT, re.MULTILINE) == expected
