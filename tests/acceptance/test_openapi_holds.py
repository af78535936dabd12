"""A server does what its OpenAPI document says, also when it is sent what the document forbids: schemathesis against it.

No answer is a 5xx, undocumented, or of another form than documented. `./justw fuzz 600 --only api` does it for longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services import get, running_server

from harness.client import HarnessClient
from harness.models import AgentDraft
from harness.tokens import TokenDraft

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")

SECONDS = int(os.environ.get("HARNESS_TEST_FUZZ_SECONDS", "30"))
#: Always the same one, so that a change breaks this test only by what it changes; schemathesis tells a random one.
SEED = os.environ.get("HARNESS_TEST_FUZZ_SEED", "1")


async def fill(url: str) -> str:
    """Make what requests are to find; return the token to send them with, which none of them revokes."""
    async with HarnessClient(url) as client:
        for name in ("found", "deleted"):
            schedule = {"type": "cron", "cron": "0 3 * * *", "overlap": "allow"}
            draft = AgentDraft(name=name, code="print('hej')", config={"schedule": schedule})
            agent = await client.create_agent(draft)
            for number in range(3):
                await client.put_handoff(agent.id, {"n": number})
            assert (await client.run(agent.id, wait_seconds=30)).status == "completed"
        mine = await client.create_token(TokenDraft(name="fuzz", scope="admin"))
    async with HarnessClient(url, token=mine.text) as client:
        await client.create_token(TokenDraft(name="to revoke", scope="read"))
    return mine.text


async def fetch(url: str) -> Any:
    """Get the document, without its word on tokens: schemathesis would count as a fault that guesses are slowed down."""
    status, document = await get(f"{url}/api/openapi.json")
    assert status == 200
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    return document


@pytest.mark.timeout(SECONDS + 60)
def test_the_server_keeps_to_its_document(tmp_path: Path, no_container_is_left: None) -> None:
    with running_server(tmp_path) as server:
        token = asyncio.run(fill(server.url))

        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(asyncio.run(fetch(server.url))))

        ended = subprocess.run(
            [
                SCHEMATHESIS, "--config-file", CONFIG, "run", document, "--url", server.url,
                "--header", f"Authorization: Bearer {token}", "--max-time", str(SECONDS), *(["--seed", SEED] if SEED != "random" else []), "--request-timeout", "20", "--no-shrink",
                "--continue-on-failure", "--output-truncate", "false",
            ],
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert ended.returncode == 0, ended.stdout + ended.stderr
        lines = server.service.log.read_text().splitlines()
    assert token not in "".join(lines)
    crashed = [
        line for line in lines if json.loads(line).get("action") in ("request_crashed", "request_failed")
    ]
    assert crashed == []
