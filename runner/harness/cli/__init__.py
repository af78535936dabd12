"""The command ``harness``: one module per noun, `app` puts them together, `session` runs them and words their errors.

Nothing here is imported by the library. Drivers, Docker and rich are imported inside commands, so that ``--help`` and
usage errors come at once.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process; return its exit code."""
    try:
        from harness.cli.app import invoke

        return invoke(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
