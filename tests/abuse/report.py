"""What was observed, for a terminal and for docs/security.md. Pure, but for `write_document`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tests.abuse.arena import EVERY_SECONDS, Neighbours, Result

#: Promised while hostile agents run: the 99th percentile of a small question's answer, in seconds.
MAX_P99_SECONDS = 0.25

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- abuse: begin -->\n", "<!-- abuse: end -->\n"


def failures(results: Sequence[Result], neighbours: Neighbours) -> list[str]:
    """Return what was not as promised."""
    found = [f"{one.case.group}: {one.case.attack}: {one.observed}" for one in results if not one.is_held]
    found += [f"the victim's fire of {missed}" for missed in neighbours.missed]
    if neighbours.fires == 0:
        found.append("the victim never fired")
    if neighbours.p99_seconds > MAX_P99_SECONDS:
        found.append(f"the API's p99 was {neighbours.p99_seconds:.3f} s, more than {MAX_P99_SECONDS} s")
    if neighbours.wrong_answers:
        found.append(f"{neighbours.wrong_answers} of the API's answers were none")
    return found


def summary(neighbours: Neighbours) -> str:
    """Return how the others fared, in one sentence."""
    return (
        f"Meanwhile a victim agent fired every {EVERY_SECONDS} s: {neighbours.fires} fires, "
        f"{len(neighbours.missed)} missed, none later than {neighbours.latest_start_seconds:.2f} s. "
        f"The API was asked {len(neighbours.answers_seconds)} times: p99 {neighbours.p99_seconds * 1000:.0f} ms."
    )


def as_markdown(results: Sequence[Result], neighbours: Neighbours, machine: str) -> str:
    """Return the tables."""
    lines = [f"Observed on {machine}.", "", summary(neighbours), ""]
    for group, members in groupby(results, key=lambda one: one.case.group):
        lines += [f"### {group.capitalize()}", "", "| attack | expected | observed |", "|---|---|---|"]
        for one in members:
            words = (
                one.case.attack,
                one.case.expected,
                one.observed + ("" if one.is_held else " **(not held)**"),
            )
            lines.append("| " + " | ".join(_cell(word) for word in words) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write_document(text: str) -> None:
    """Put the tables into the document, in place of the ones that are there."""
    document = DOCUMENT.read_text()
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{after}")
