"""Other processes on the same data."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from asyncio.subprocess import PIPE, Process

from tests.contract.places import Place

_PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from harness.models import *
from harness.store.mongo import MongoStore
from harness.store.sqlite import SqliteStore

async def main():
    store = {expression}
    await store.open()
    {code}
    await store.close()

asyncio.run(main())
"""


async def start_process(place: Place, code: str) -> Process:
    """Run code with an open `store` in a process of its own."""
    body = textwrap.indent(textwrap.dedent(code), "    ").strip()
    program = _PROGRAM.format(expression=place.expression(), code=body)
    return await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE)
