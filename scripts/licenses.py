"""Writes docs/licenses.md, the licences of what an installed product runs on; with --check, says whether it is current.

Packages that this machine's Python does not need are left in it as they are, if they are locked still: the list is one
for all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from locked import ROOT, Dependency, read_constraints, runtime_dependencies

FILE = ROOT / "docs" / "licenses.md"
HEAD = """\
# Licences of what it runs on

Agent Harness itself is under the [Apache License 2.0](../LICENSE). What is installed with it, at the versions of
`constraints.txt`, as each package states its licence. Written by `./justw licenses`; `./justw sbom` has the same as a bill of
materials (CycloneDX). What only tests and tools use is not in it, nor are the images that agents run in.

| package | version | licence | |
|---|---|---|---|
"""
#: May not be run on: CONTRIBUTING.md. The MPL covers its own files only.
_COPYLEFT = re.compile(r"\b[AL]?GPL|General Public License", re.IGNORECASE)
#: Not the table's head: a version begins with a digit.
_ROW = re.compile(r"\| ([a-z0-9-]+) \| (\d[^ |]*) \| ([^|]+) \| ([^|]*) ?\|")


def rows(dependencies: Sequence[Dependency]) -> dict[str, str]:
    """Return the table's lines, by name."""
    return {
        one.name: f"| {one.name} | {one.version} | {one.license} | {f'with `{one.extra}`' if one.extra else ''} |"
        for one in dependencies
    }


def problems(text: str, dependencies: Sequence[Dependency], locked: set[tuple[str, str]]) -> list[str]:
    """Return what is wrong with the list, or with what it has to say."""
    found = [
        f"{one.name} {one.version} is under {one.license}; what the product runs on must not be copyleft"
        for one in dependencies
        if _COPYLEFT.search(one.license)
    ]
    listed = _listed(text)
    for name, row in rows(dependencies).items():
        if listed.get(name) != row:
            found.append(f"{FILE.name} must have: {row}")
    found += [
        f"{FILE.name} has {name}, which is not locked at that version"
        for name, row in listed.items()
        if (name, row.split(" | ")[1]) not in locked
    ]
    return found


def _listed(text: str) -> dict[str, str]:
    return {match[1]: line for line in text.splitlines() if (match := _ROW.fullmatch(line))}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    dependencies = runtime_dependencies()
    locked = {(one.name, one.version) for one in read_constraints()}
    before = FILE.read_text() if FILE.exists() else ""
    if parser.parse_args().check:
        found = problems(before, dependencies, locked)
        print("\n".join(f"licences: {problem}" for problem in found) or f"licences: {FILE.name} is current")
        if found:
            print("licences: run ./justw licenses, and look at what changed")
        return int(bool(found))
    others = {name: row for name, row in _listed(before).items() if (name, row.split(" | ")[1]) in locked}
    FILE.write_text(HEAD + "\n".join(row for _, row in sorted((others | rows(dependencies)).items())) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
