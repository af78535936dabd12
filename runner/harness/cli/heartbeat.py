"""A file that says that a program is alive, for health checks of one that answers nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

#: How often the file is written.
HEARTBEAT_SECONDS = 5.0


@asynccontextmanager
async def heartbeat(path: Path | None) -> AsyncIterator[None]:
    """Write a file again and again within the block, from its event loop, and take it away at its end.

    Args:
        path: None: no file.
    """
    if path is None:
        yield
        return
    _write(path)
    beating = asyncio.create_task(_beat(path))
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call, on a local disk


async def _beat(path: Path) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        try:
            _write(path)
        except OSError as error:
            # Whoever looks after the file notices that it gets old.
            logger.warning("the heartbeat is not written: %s", error, extra={"action": "heartbeat_failed"})


def _write(path: Path) -> None:
    path.write_text("alive\n")
