"""Writes the table of fires around clock changes in docs/schedules.md: ``python -m tests.unit.dst_table --write``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from harness.config import ScheduleConfig
from harness.triggers import make_trigger, preview

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "schedules.md"
BEGIN, END = "<!-- clock-changes: begin -->\n", "<!-- clock-changes: end -->\n"

EXPRESSIONS = ("30 2 * * *", "0 2,3 * * *", "15 1-3 * * *", "0 * * * *", "*/30 * * * *", "0 */2 * * *")

#: What happens, zone, and the local hours that are listed.
CHANGES = (
    ("02:00 becomes 03:00", "Europe/Paris", "2026-03-29T01:00", "2026-03-29T04:00"),
    ("03:00 becomes 02:00", "Europe/Paris", "2026-10-25T01:00", "2026-10-25T04:00"),
    ("02:00 becomes 03:00", "America/New_York", "2026-03-08T01:00", "2026-03-08T04:00"),
    ("02:00 becomes 01:00", "America/New_York", "2026-11-01T00:00", "2026-11-01T04:00"),
    ("02:00 becomes 02:30", "Australia/Lord_Howe", "2026-10-04T01:00", "2026-10-04T04:00"),
    ("02:00 becomes 01:30", "Australia/Lord_Howe", "2026-04-05T01:00", "2026-04-05T04:00"),
    ("30 December is left out", "Pacific/Apia", "2011-12-29T23:00", "2011-12-31T04:00"),
)
LEAP_EXPRESSIONS = ("0 0 29 2 *", "0 0 28-31 2 *", "0 0 29 * *", "@monthly")
LEAP_CHANGES = (
    ("UTC: a February of 28 days", "UTC", "2027-02-01T00:00", "2027-03-02T00:00"),
    ("UTC: a February of 29 days", "UTC", "2028-02-01T00:00", "2028-03-02T00:00"),
)


def rewrite(document: str) -> str:
    """Return the document with the table as it must be."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{render()}\n{END}{tail}"


def render() -> str:
    """Return the sections, one per change."""
    sections = []
    for what, zone, begin, end in CHANGES:
        title = f"{zone}, {datetime.fromisoformat(end):%d %B %Y}: {what}"
        sections.append(_section(title, zone, begin, end, EXPRESSIONS))
    sections += [_section(*change, LEAP_EXPRESSIONS) for change in LEAP_CHANGES]
    return "\n".join(sections)


def _section(title: str, zone: str, begin: str, end: str, expressions: tuple[str, ...]) -> str:
    rows = [f"| `{text}` | {_fires(text, zone, begin, end)} |" for text in expressions]
    return "\n".join([f"**{title}**", "", "| cron | fires |", "|---|---|", *rows, ""])


def _fires(text: str, zone: str, begin: str, end: str) -> str:
    info = ZoneInfo(zone)
    first, last = (
        datetime.fromisoformat(local).replace(tzinfo=info).astimezone(UTC) for local in (begin, end)
    )
    before = first - timedelta(seconds=1)
    trigger = make_trigger(ScheduleConfig(type="cron", cron=text, timezone=zone), agent_id=1, anchor=before)
    fires = [time.astimezone(info) for time in preview(trigger, before, 100) if time < last]
    if zone == "UTC":
        return ", ".join(f"{time:%d %b}" for time in fires) or "none"
    return ", ".join(f"{time:%H:%M} ({time.isoformat()[-6:]})" for time in fires) or "none"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    DOCUMENT.write_text(rewrite(DOCUMENT.read_text()))
