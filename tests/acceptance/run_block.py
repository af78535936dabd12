"""Run a Python snippet from stdin as documentation shows it: with ``await`` at its top level. Helper of the tests."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from types import FunctionType


async def main(source: str) -> None:
    """Execute the snippet in a namespace of its own."""
    code = compile(source, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = FunctionType(code, {"__name__": "block"})()
    if inspect.isawaitable(outcome):
        await outcome


if __name__ == "__main__":
    asyncio.run(main(sys.stdin.read()))
