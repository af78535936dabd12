"""`Dispatch`: what can wait gives way while a run is being given its container. No I/O."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Dispatch:
    """Entered by whoever gives a run its container; others wait for `quiet`."""

    def __init__(self) -> None:
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def __enter__(self) -> None:
        self._under_way += 1
        self._quiet.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._quiet.set()

    async def quiet(self) -> None:
        """Wait until no run waits for its container."""
        await self._quiet.wait()
