"""Making text from agents safe to show on a terminal, and people's words for sizes, times and schedules. Pure."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

# Controls other than tab and newline, C1 controls (on many terminals U+009B begins a sequence just as ESC [ does), line
# separators, and the marks that reorder what is shown (CVE-2021-42574). A lone surrogate stands for a byte that is no
# UTF-8 and would reach the terminal as that byte.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def neutralize(text: str) -> str:
    r"""Replace what could drive a terminal by a visible form: ``\x1b[2J`` becomes ``^[[2J``. Newline and tab stay."""
    return _UNSAFE.sub(_visible, text)


def neutralize_json(text: str) -> str:
    """Replace the same characters in a JSON text by their JSON escapes; it stays the same document."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """Return `text` on one line, safe to show."""
    return neutralize(" ".join(text.split()))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return f"^{chr(code + 0x40)}"
    if code == 0x7F:
        return "^?"
    return f"<U+{code:04X}>"


class TerminalText:
    """Turns one byte stream, however it is cut into pieces, into text that is safe to show on a terminal.

    A carriage return becomes a line end, so that a progress bar stays readable and nothing shown is overwritten.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._after_return = False

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return the text of the next piece; with `final`, also what an unfinished character leaves."""
        text = self._decoder.decode(data, final)
        if not text:
            return ""
        if self._after_return and text[0] == "\n":
            text = text[1:]
            self._after_return = False
        if text:
            self._after_return = text[-1] == "\r"
        return neutralize(text.replace("\r\n", "\n").replace("\r", "\n"))


def size_text(size_bytes: float) -> str:
    """Return a size for people: ``512 B``, ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def seconds_text(seconds: float) -> str:
    """Return a duration for people: ``24 ms``, ``1.25 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def instant_text(instant: datetime | None) -> str:
    """Return an instant to the second, in UTC; ``-`` for None."""
    return "-" if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def schedule_text(config: Mapping[str, Any]) -> str:
    """Return an agent's schedule in a few words; ``-`` without one."""
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return "-"
    text = f"cron {schedule.get('cron')}"
    if schedule.get("type") == "interval":
        seconds, minutes = schedule.get("interval_seconds"), schedule.get("interval_minutes")
        text = f"every {minutes} min" if seconds is None else f"every {seconds} s"
    elif schedule.get("timezone", "UTC") != "UTC":
        text += f" {schedule['timezone']}"
    return text if schedule.get("enabled", True) else f"{text} (paused)"
