"""Run hostile agents and hostile clients, one after the other, and tell what became of them and of those beside them."""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
from pathlib import Path

from tests.abuse import clients, escape, exhaustion, lying, reach
from tests.abuse.arena import Neighbours, Result, open_arena
from tests.abuse.case import Case
from tests.abuse.clients.target import ClientCase
from tests.abuse.report import as_markdown, failures, summary, write_document

CASES = (*escape.CASES, *exhaustion.CASES, *lying.CASES, *reach.CASES, *clients.CASES)


async def run_cases(cases: tuple[Case | ClientCase, ...], folder: Path) -> tuple[list[Result], Neighbours]:
    """Run cases in a server of their own."""
    results = []
    async with open_arena(folder) as arena:
        for case in cases:
            result = await arena.run(case)
            results.append(result)
            mark = "held" if result.is_held else "HARM"
            print(
                f"{mark}  {result.seconds:5.1f} s  {case.group}: {case.attack}: {result.observed}", flush=True
            )
        await arena.look_after_victim()
    return results, arena.neighbours


def main() -> int:
    """Run the command; return its exit code: 1 when something was not as promised."""
    parser = argparse.ArgumentParser(prog="./justw abuse", description=__doc__)
    parser.add_argument("--only", metavar="WORD", help="cases whose group or attack has this word")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/security.md")
    options = parser.parse_args()
    cases = tuple(
        case for case in CASES if options.only is None or options.only in f"{case.group} {case.attack}"
    )
    if not cases:
        parser.error(f"no case has {options.only!r} in its name")
    if options.write and options.only is not None:
        parser.error("--write is for all cases; leave --only away")
    with tempfile.TemporaryDirectory(prefix="harness-abuse-") as folder:
        results, neighbours = asyncio.run(run_cases(cases, Path(folder)))
    print(summary(neighbours))
    if options.write:
        machine = f"Linux {platform.release()}, {platform.machine()}, Docker on this kernel"
        write_document(as_markdown(results, neighbours, machine))
    wrong = failures(results, neighbours)
    for line in wrong:
        print(f"not as promised: {line}", file=sys.stderr)
    print(f"{len(results)} cases, {len(wrong)} not as promised")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
