"""Every byte of output arrives, in order and told apart, however fast and however hard a program ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.sandboxes import Lab, Ran

from harness.models import Reason

RUNS = 500
AT_ONCE = 8

#: Ways to end at once, each with its exit code. None of them but the first flushes anything.
ENDS = (("", 0), ("os._exit(0)", 0), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", 137))

CODE = """
import os
number, lines = context["number"], context["lines"]
for line in range(lines):
    os.write(1, b"out %d line %d\\n" % (number, line))
    os.write(2, b"err %d line %d\\n" % (number, line))
os.write(1, b"out %d ends without a newline" % number)
os.write(2, b"err %d too" % number)
"""

SHELL = """
read -r context
i=0
while [ $i -lt {lines} ]; do echo "out {number} line $i"; echo "err {number} line $i" >&2; i=$((i+1)); done
printf 'out {number} ends without a newline'; printf 'err {number} too' >&2; exit {exit_code}
"""


def expected(number: int, lines: int) -> tuple[bytes, bytes]:
    out = "".join(f"out {number} line {line}\n" for line in range(lines))
    err = "".join(f"err {number} line {line}\n" for line in range(lines))
    return f"{out}out {number} ends without a newline".encode(), f"{err}err {number} too".encode()


async def run_all(count: int, most_lines: int, run: Callable[[int, int], Awaitable[Ran]]) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    wrong = []

    async def one(number: int) -> None:
        # Mostly a few lines, now and then more than the pipe and one frame of the engine hold.
        lines = most_lines if number % 50 == 0 else number % 7
        async with places:
            ran = await run(number, lines)
        if (ran.stdout, ran.stderr) != expected(number, lines):
            wrong.append((number, lines, ran))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    assert wrong == []


@pytest.mark.timeout(240)
async def test_all_output_of_five_hundred_agents_that_end_at_once(lab: Lab) -> None:
    async def run(number: int, lines: int) -> Ran:
        end, exit_code = ENDS[number % len(ENDS)]
        ran = await lab.run(CODE + end, context={"number": number, "lines": lines})
        assert ran.result.exit_code == exit_code, ran
        assert ran.reason is (Reason.EXIT_NONZERO if exit_code else Reason.COMPLETED)
        return ran

    await run_all(RUNS, 5000, run)


@pytest.mark.timeout(120)
async def test_all_output_of_a_hundred_plain_commands_that_end_at_once(lab: Lab) -> None:
    # No supervisor here: it is the engine alone that keeps, or loses, the last words of the first process.
    async def run(number: int, lines: int) -> Ran:
        exit_code = number % 3
        script = SHELL.format(number=number, lines=lines, exit_code=exit_code)
        ran = await lab.run(command=("sh", "-c", script))
        assert ran.result.exit_code == exit_code, ran
        return ran

    await run_all(100, 500, run)
