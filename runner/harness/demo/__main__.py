"""Runs the demo: ``python -m harness.demo`` or, in a checkout, ``./justw demo``."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.cli.session import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    StoppedBySignalError,
    complain,
    exit_code,
    mute,
    prepare_streams,
    run_async,
)
from harness.demo.display import Display
from harness.demo.session import AGENT_NAME, run_demo
from harness.errors import EngineUnavailableError, HarnessError
from harness.settings import Settings, get_settings

#: Tried as it stands by the acceptance test.
SAMPLE_AGENT = 'import handoff; handoff.save({"runs": context.get("runs", 0) + 1})'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit code, which is that of the same failure in ``harness``."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description="An agent audits the standard library of its sandbox's Python in about ten runs, each in a "
        "container of its own. Everything is thrown away at the end. It works on this machine, whatever HARNESS_URL says.",
    )
    parser.add_argument(
        "--keep",
        metavar="DIR",
        type=Path,
        help="keep the data in DIR; after an interruption, a demo with the same DIR goes on where that one was",
    )
    keep: Path | None = parser.parse_args(arguments).keep
    prepare_streams()
    try:
        with contextlib.ExitStack() as stack:
            data_dir = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="harness-demo-")))
            settings = _settings(data_dir)
            display = Display()
            good = run_async(lambda: run_demo(settings, display))
        if good:
            display.next_steps(_next_steps(keep))
        sys.stdout.flush()
    except HarnessError as error:
        hint = (
            "; in a checkout, ./justw docker-engine gets one"
            if isinstance(error, EngineUnavailableError)
            else ""
        )
        complain(error.message + hint, code=error.code, as_json=False)
        return exit_code(error)
    except StoppedBySignalError as error:
        complain(str(error), code="interrupted", as_json=False)
        return 128 + error.number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        mute(sys.stdout)
        return EXIT_BROKEN_PIPE
    except OSError as error:
        mute(sys.stdout)
        complain(f"the operating system refused: {error}", code="os_error", as_json=False)
        return EXIT_FAILED
    return 0 if good else EXIT_FAILED


def _settings(data_dir: Path) -> Settings:
    """Return the environment's settings, but for where data goes: the demo touches no store of the user's."""
    changes = {"data_dir": data_dir.absolute(), "mongodb_uri": None, "url": None}
    return get_settings().model_copy(update=changes)


def _next_steps(keep: Path | None) -> list[str]:
    harness = _harness_command()
    steps = [
        f"echo '{SAMPLE_AGENT}' |",
        f"  {harness} agents create counter --code -",
        f"{harness} run counter",
        f"{harness} handoff show counter",
    ]
    if keep is None:
        return steps
    kept = f"HARNESS_DATA_DIR={shlex.quote(str(keep))} {harness} handoff show {AGENT_NAME}"
    return [kept, *steps]


def _harness_command() -> str:
    """Return how this installation's ``harness`` is called from here; in a checkout it is not on the PATH."""
    script = Path(sys.executable).with_name("harness")
    if not script.exists() or shutil.which("harness") == str(script):
        return "harness"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


if __name__ == "__main__":
    sys.exit(main())
