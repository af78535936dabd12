"""``python -m tests.torture``: the oracle test in its long form; see docs/testing.md."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.torture.run import Report, Torture, torture

from harness.clock import SystemClock
from harness.settings import Settings
from harness.wiring import make_sandbox


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, help="repeats a run's agents and faults; by default a new one")
    parser.add_argument("--store", choices=("sqlite", "mongo"), default="sqlite")
    parser.add_argument("--agents", type=int, default=30)
    parser.add_argument("--warm", type=int, help="containers that wait, for each process; 0: none")
    parser.add_argument("--folder", type=Path, help="keeps logs and store; by default a new one")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="harness-torture-"))
    what = Torture(seed, given.minutes * 60, given.store, given.agents)
    if given.warm is not None:
        what = replace(what, warm=given.warm)
    print(
        f"seed {seed}, {given.minutes:g} minutes, {given.store}, {given.agents} agents, {what.warm} warm; logs in {folder}",
        flush=True,
    )
    report = asyncio.run(_main(what, folder))
    print(report.text())
    return 1 if report.violations or report.exit_code != 0 else 0


async def _main(what: Torture, folder: Path) -> Report:
    sandbox = make_sandbox(Settings.load(), SystemClock())
    try:
        image = await sandbox.images.ensure_default()
    finally:
        await sandbox.close()
    return await torture(what, image, folder, lambda line: print(line, flush=True))


if __name__ == "__main__":
    raise SystemExit(main())
