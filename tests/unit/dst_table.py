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
    ("28 days", "UTC", "2027-02-01T00:00", "2027-03-02T00:00"),
    ("29 days", "UTC", "2028-02-01T00:00", "2028-03-02T00:00"),
)


def rewrite(document: str) -> str:
    """Return the document with the table as it must be."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{render()}\n{END}{tail}"


def render() -> str:
    """Return the sections, one per change."""
    sections = [_section(*change, EXPRESSIONS, "%H:%M") for change in CHANGES]
    sections += [_section(*change, LEAP_EXPRESSIONS, "%d %b") for change in LEAP_CHANGES]
    return "\n".join(sections)


def _section(what: str, zone: str, begin: str, end: str, expressions: tuple[str, ...], form: str) -> str:
    info = ZoneInfo(zone)
    first, last = (datetime.fromisoformat(text).replace(tzinfo=info) for text in (begin, end))
    title = (
        f"**{zone}, {first:%B %Y}: February has {what}**"
        if zone == "UTC"
        else f"**{zone}, {last:%d %B %Y}: {what}**"
    )
    rows = [f"| `{text}` | {_fires(text, zone, first, last, form)} |" for text in expressions]
    return "\n".join([title, "", "| cron | fires |", "|---|---|", *rows, ""])


def _fires(text: str, zone: str, first: datetime, last: datetime, form: str) -> str:
    schedule = ScheduleConfig(type="cron", cron=text, timezone=zone)
    begin, end = first.astimezone(UTC) - timedelta(seconds=1), last.astimezone(UTC)
    trigger = make_trigger(schedule, agent_id=1, anchor=begin)
    local = [time.astimezone(first.tzinfo) for time in preview(trigger, begin, 100) if time < end]
    shown = [f"{time:{form}}" + ("" if zone == "UTC" else f" ({_offset(time)})") for time in local]
    return ", ".join(shown) or "none"


def _offset(time: datetime) -> str:
    return f"{time.isoformat()[-6:]}"


if __name__ == "__main__":
    text = rewrite(DOCUMENT.read_text())
    if "--write" in sys.argv:
        DOCUMENT.write_text(text)
    else:
        sys.stdout.write(render())
