"""The docs page: served from here alone, and nothing runs in it but its own script."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
import pytest
from tests.services import Server

from harness_server.openapi import make_document
from harness_server.routes import ENDPOINTS

ROOT = Path(__file__).parent.parent.parent.parent
FILES = {
    "docs": "text/html; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "openapi.json": "application/json",
}


async def fetch(server: Server, name: str) -> tuple[aiohttp.ClientResponse, str]:
    async with aiohttp.ClientSession(server.url) as session, session.get(f"/api/{name}") as answer:
        return answer, await answer.text()


@pytest.mark.parametrize("name", FILES)
async def test_each_part_of_the_page_is_served_as_what_it_is(name: str, server: Server) -> None:
    answer, text = await fetch(server, name)

    assert (answer.status, answer.headers["Content-Type"]) == (200, FILES[name])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert len(text) > 1000


@pytest.mark.parametrize("name", FILES)
async def test_nothing_is_loaded_from_elsewhere(name: str, server: Server) -> None:
    _, text = await fetch(server, name)

    if name != "openapi.json":
        assert not re.search(r"https?://|//[a-z]+\.|@import|\burl\(", text)


async def test_the_page_allows_its_own_script_alone_and_needs_no_more(server: Server) -> None:
    answer, text = await fetch(server, "docs")

    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert re.findall(r"<script[^>]*>[^<]", text) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", text) == []
    assert set(re.findall(r'(?:src|href)="([^"]+)"', text)) == {
        "data:,",
        "docs.css",
        "docs.js",
        "openapi.json",
    }
    _, script = await fetch(server, "docs.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script
    )


async def test_the_document_is_the_endpoints(server: Server) -> None:
    async with aiohttp.ClientSession(server.url) as session, session.get("/api/openapi.json") as answer:
        assert await answer.json() == make_document(ENDPOINTS)


def test_the_page_is_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    for file in (ROOT / "server/harness_server/static").iterdir():
        assert f"harness_server/static/{file.name}" in names
