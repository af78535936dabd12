"""What integration tests stand on: a Docker Engine that answers, with the sandbox image on it. Never skipped."""

from __future__ import annotations

import asyncio

import pytest

from harness.clock import SystemClock
from harness.sandbox.inspection import ping
from harness.settings import Settings
from harness.wiring import make_sandbox


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    """The sandbox image's name; builds the image where it is missing."""

    async def prepare() -> str:
        sandbox = make_sandbox(Settings.load(), SystemClock())
        try:
            await ping(sandbox.engine)
            return await sandbox.images.ensure_default()
        finally:
            await sandbox.close()

    return asyncio.run(prepare())
