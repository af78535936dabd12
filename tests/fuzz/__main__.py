"""Feed readers of what strangers write, and a server, with what nobody would think of."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.fuzzing import fuzz
from tests.fuzz.targets import TARGETS

_API = "api"
_API_TEST = Path(__file__).parents[1] / "acceptance" / "test_openapi_holds.py"


def _fuzz_api(seconds: int, seed: str) -> int:
    environment = {"HARNESS_TEST_FUZZ_SECONDS": str(seconds), "HARNESS_TEST_FUZZ_SEED": seed}
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", str(_API_TEST)]
    code = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    print(
        f"{_API}: a server was sent requests for {time.monotonic() - began:.0f} s: {'FAILED' if code else 'ok'}"
    )
    return code


def _run_apart(name: str, seconds: int, seed: str) -> int:
    """Run one target in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "tests.fuzz", str(seconds), "--only", name, "--seed", seed]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Run the command; return its exit code: 1 when something did not hold."""
    names = [*TARGETS, _API]
    parser = argparse.ArgumentParser(prog="./justw fuzz", description=__doc__)
    parser.add_argument("seconds", type=int, nargs="?", default=600, help="for each target (600)")
    parser.add_argument("--only", choices=names, help="one target; all others run in processes of their own")
    parser.add_argument("--seed", default="random", help="a number, to have the same again")
    options = parser.parse_args()
    if options.only is None:
        codes = [_run_apart(name, options.seconds, options.seed) for name in names]
        return 1 if any(codes) else 0
    if options.only == _API:
        return 1 if _fuzz_api(options.seconds, options.seed) else 0
    seed = random.randrange(2**32) if options.seed == "random" else int(options.seed)
    print(f"{options.only}: seed {seed}", flush=True)
    print(
        f"{options.only}: {fuzz(TARGETS[options.only], seconds=options.seconds, seed=seed)}: ok", flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
