"""Measure what a run in a fresh container costs, beside ``docker run --rm`` of the same program on the same engine.

Contenders take turns, so that whatever else the machine does hits all of them, and every ratio is of one run. A table
goes to stdout, with the goals and whether they are met. Nothing is written unless asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import (
    burst,
    history,
    latency,
    lists,
    logs,
    memory,
    report,
    scheduling,
    startup,
    store,
    throughput,
)
from tests.benchmarks.bench import FULL, QUICK, Measure, Sizes, open_bench

GROUPS: dict[str, Measure] = {
    "startup": startup.measure,
    "latency": latency.measure,
    "throughput": throughput.measure,
    "burst": burst.measure,
    "memory": memory.measure,
    "history": history.measure,
}


async def main(groups: list[str], sizes: Sizes, json_path: Path | None, *, writes: bool) -> None:
    """Measure some groups, print the table, and write what is asked for."""
    this = asyncio.current_task()
    assert this is not None
    # As Ctrl+C: what was started is stopped.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with open_bench(sizes) as bench:
        findings = []
        for group in groups:
            print(f"measuring {group}", file=sys.stderr, flush=True)
            findings.append(await GROUPS[group](bench))
        machine = bench.machine
    report.show(machine, findings)
    if json_path is not None:
        json_path.write_text(report.as_json(machine, findings))  # noqa: ASYNC240 - nothing else runs by now
    if writes:
        report.write_documents(machine, findings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, action="append", help="measure this group; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of half an hour; proves little"
    )
    parser.add_argument("--runs", type=int, help=f"runs of each contender (default: {FULL.runs})")
    parser.add_argument("--seconds", type=float, help=f"seconds of throughput (default: {FULL.seconds:g})")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md; takes all groups")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--scheduling", action="store_true", help="compare schedulers instead; takes minutes")
    parser.add_argument("--store", action="store_true", help="measure the embedded store instead")
    parser.add_argument(
        "--lists",
        action="store_true",
        help="ask a server for lists under 100,000 tasks instead; takes minutes",
    )
    parser.add_argument(
        "--logs", action="store_true", help="follow a million lines instead, beside docker logs -f"
    )
    parser.add_argument(
        "--lines", type=int, default=1_000_000, help="how many, with --logs (default: 1000000)"
    )
    arguments = parser.parse_args()
    if arguments.scheduling:
        scheduling.compare()
    elif arguments.store:
        asyncio.run(store.main())
    elif arguments.lists:
        lists.compare(arguments.json)
    elif arguments.logs:
        logs.compare(arguments.lines, arguments.json)
    else:
        if arguments.write and (arguments.only or arguments.quick):
            parser.error("--write takes all groups in full: leave out --only and --quick")
        changes = {name: value for name in ("runs", "seconds") if (value := getattr(arguments, name))}
        sizes = replace(QUICK if arguments.quick else FULL, **changes)
        try:
            asyncio.run(main(arguments.only or [*GROUPS], sizes, arguments.json, writes=arguments.write))
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)
