"""How findings are shown: one table on stdout, JSON, and the document under docs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tests.benchmarks.figures import Found, Goal, Row

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
#: The same figures for programs.
DOCUMENT_JSON = DOCUMENT.with_suffix(".json")

_COLUMNS = ("", "unit", "p50", "p95", "p99", "values", "ratio")
_GOAL_COLUMNS = ("goal", "bound", "measured", "verdict")

_INTRODUCTION = """\
# Benchmarks

Written by `./justw bench --write`; the same figures are in [benchmarks.json](benchmarks.json). `./justw bench` measures
them on your machine and writes nothing; `--only GROUP` takes one group, `--quick` a minute instead of half an hour.

Times are this machine's and of that day. What to compare are the ratios: both sides of each were measured in the same
run, in turns, so whatever else the machine did hit both. A ratio's other side is the last row above it whose ratio is 1.

- **`docker run --rm`** is what a user would type: no limits. Where it says *locked down*, it has every limit and lock-down
  of our containers that the command line offers (memory without swap, CPU, processes, read-only root, tmpfs, no
  capabilities, no new privileges, no network, no engine log, a user without a name). Same image, same program, the
  `docker` command as a process.
- **cold**: our container is made for the run. **warm**: it waited for a task of its shape, with nothing in it. **adapted**:
  it waited for one of another shape, and was given the limits of this one.
- Ours is measured with the store (SQLite, durable writes) and the log of each run in the path; `docker run` stores
  nothing.
"""


def as_json(machine: Mapping[str, str], findings: Sequence[Found]) -> str:
    """Return everything that was found."""
    document: dict[str, Any] = {"machine": dict(machine), "groups": []}
    for found in findings:
        goals = [asdict(goal) | {"verdict": goal.verdict} for goal in found.goals]
        document["groups"].append(asdict(found) | {"goals": goals})
    return json.dumps(document, indent=2) + "\n"


def show(machine: Mapping[str, str], findings: Sequence[Found]) -> None:
    """Print the table, the notes and the goals."""
    console = Console(width=120)
    table = Table(title="; ".join(f"{name} {value}" for name, value in machine.items()))
    for column in _COLUMNS:
        table.add_column(column, justify="left" if not column else "right")
    for found in findings:
        table.add_section()
        table.add_row(f"[bold]{found.title}[/bold]")
        for row in found.rows:
            table.add_row(*_cells(row, found))
    console.print(table)
    for found in findings:
        for note in found.notes:
            console.print(f"{found.group}: {note}", markup=False, highlight=False)
    goals = Table(title="Goals")
    for column in _GOAL_COLUMNS:
        goals.add_column(column, justify="left" if column == _GOAL_COLUMNS[0] else "right")
    for cells in _all_goals(findings):
        goals.add_row(*cells)
    if goals.rows:
        console.print(goals)


def as_markdown(machine: Mapping[str, str], findings: Sequence[Found]) -> str:
    """Return everything that was found, to be read."""
    parts = [_INTRODUCTION, "## Machine\n", _markdown(("", ""), machine.items())]
    parts += ["## Goals\n", _markdown(_GOAL_COLUMNS, _all_goals(findings))]
    for found in findings:
        rows = (_cells(row, found) for row in found.rows)
        parts += [f"## {found.title}\n", _markdown(_COLUMNS, rows)]
        parts += [f"- {note}" for note in found.notes] + ([""] if found.notes else [])
    return "\n".join(parts).rstrip() + "\n"


def write_documents(machine: Mapping[str, str], findings: Sequence[Found]) -> None:
    """Write the document and its JSON."""
    DOCUMENT.write_text(as_markdown(machine, findings))
    DOCUMENT_JSON.write_text(as_json(machine, findings))


def _all_goals(findings: Sequence[Found]) -> Iterable[tuple[str, ...]]:
    return (_goal_cells(goal) for found in findings for goal in found.goals)


def _goal_cells(goal: Goal) -> tuple[str, ...]:
    sign = "≤" if goal.at_most else "≥"
    measured = "" if goal.measured is None else _number(goal.measured) + goal.unit
    return goal.what, f"{sign} {_number(goal.bound)}{goal.unit}", measured, goal.verdict


def _cells(row: Row, found: Found) -> tuple[str, ...]:
    values = ("" if value is None else _number(value) for value in (row.p50, row.p95, row.p99))
    is_base = any(row.name == other.beside for other in found.rows)
    ratio = "1" if is_base else "" if row.ratio is None else _number(row.ratio)
    return row.name, row.unit, *values, str(row.count), ratio


def _number(value: float) -> str:
    """Three digits that count, and no more than are there."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _markdown(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
