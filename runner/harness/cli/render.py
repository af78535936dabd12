"""Printing: JSON, tables, fields and notes. Colours and fitted tables on a terminal, plain aligned text elsewhere.

Whatever goes to a terminal passes `harness.cli.text.neutralize` here, so that no command can forget it.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from harness.cli.text import neutralize, neutralize_json, one_line

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from harness.models import Page

#: Terminals with less room than this beside a label get their lines unbroken.
MIN_HANGING_WIDTH = 20

#: How words that say how something stands are coloured.
STYLES = {
    "completed": "green",
    "running": "cyan",
    "pending": "yellow",
    "failed": "red",
    "cancelled": "magenta",
    "skipped": "dim",
    "OK": "green",
    "WARNING": "bold yellow",
    "PROBLEM": "bold red",
    "SKIPPED": "yellow",
    "field": "bold",
    "error:": "bold red",
    "warning:": "yellow",
}


def print_json(value: Any, *, stream: TextIO | None = None, indent: int | None = 2) -> None:
    """Print one JSON document."""
    stream = stream or sys.stdout
    only_ascii = stream.encoding.lower().replace("-", "") != "utf8"
    text = json.dumps(value, indent=indent, ensure_ascii=only_ascii)
    print(neutralize_json(text) if stream.isatty() else text, file=stream)


def print_model(model: BaseModel) -> None:
    """Print a model as JSON, by its field names."""
    print_json(model.model_dump(mode="json"))


def print_page_json(page: Page[Any]) -> None:
    """Print a page of models as JSON: items, total_count, limit, offset."""
    print_json(
        {
            "items": [item.model_dump(mode="json") for item in page.items],
            "total_count": page.total_count,
            "limit": page.limit,
            "offset": page.offset,
        }
    )


def say(text: str) -> None:
    """Print text of any length to standard output."""
    print(neutralize(text) if sys.stdout.isatty() else text)


def note(text: str, *, label: str = "") -> None:
    """Print one line for people to standard error, with a coloured label in front."""
    line = one_line(text)
    if not sys.stderr.isatty():
        print(f"{label} {line}" if label else line, file=sys.stderr, flush=True)
        return
    from rich.text import Text

    parts = Text(no_wrap=True)
    if label:
        parts.append(label, style=STYLES.get(label, "bold")).append(" ")
    _console(sys.stderr).print(parts.append(line), soft_wrap=True)


def note_rest(page: Page[Any]) -> None:
    """Say where the rest of a page is, if there is one."""
    end = page.offset + len(page.items)
    if end < page.total_count:
        note(f"{len(page.items)} of {page.total_count} shown; go on with --offset {end}")
    elif page.total_count == 0:
        note("none found")


def print_styled(head: str, rest: str, *, style_of: str = "") -> None:
    """Print one line at once: a head as it is, coloured by a word of `STYLES`, and the rest made safe."""
    line = one_line(rest)
    if not sys.stdout.isatty():
        print(f"{head}{line}", flush=True)
        return
    from rich.text import Text

    console = _console(sys.stdout)
    text = Text().append(head, style=STYLES.get(style_of, "")).append(_hang(line, len(head), console.width))
    console.print(text, soft_wrap=True)


def _hang(line: str, indent: int, width: int) -> str:
    """Break a line at words for a terminal, so that what follows stands below its beginning."""
    if width - indent < MIN_HANGING_WIDTH:
        return line
    pieces = textwrap.wrap(line, width - indent, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(pieces)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, give_way: str) -> None:
    """Print rows under headers; an empty cell shows as ``-``, so that columns can be counted.

    Args:
        headers: Column titles.
        rows: Cells, as many as headers.
        give_way: The column that is cut first where a terminal is too narrow; in a pipe nothing is cut.
    """
    cells = [[one_line(cell) or "-" for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_fitted_table(headers, cells, give_way)
        return
    widths = [max(len(line[column]) for line in [headers, *cells]) for column in range(len(headers))]
    for line in [headers, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_fitted_table(headers: Sequence[str], rows: Sequence[Sequence[str]], give_way: str) -> None:
    """Print a table no wider than the terminal, with styles; rich's own tables shrink all columns alike."""
    from rich.cells import cell_len
    from rich.text import Text

    console = _console(sys.stdout)
    natural = [max(cell_len(line[column]) for line in [headers, *rows]) for column in range(len(headers))]
    widths = _fit(natural, [len(header) for header in headers], headers.index(give_way), console.width)
    for line in [headers, *rows]:
        text = Text()
        for cell, width in zip(line, widths, strict=True):
            part = Text(cell, style="bold" if line is headers else STYLES.get(cell, ""))
            part.truncate(width, overflow="ellipsis", pad=True)
            text.append(part).append("  ")
        text.rstrip()
        console.print(text, soft_wrap=True)


def _fit(natural: Sequence[int], least: Sequence[int], give_way: int, available: int) -> list[int]:
    """Return column widths: `give_way` is cut first, then whichever is widest; nothing below its `least`."""
    widths = list(natural)
    excess = sum(widths) + 2 * (len(widths) - 1) - available
    if excess > 0:
        widths[give_way] = max(least[give_way], widths[give_way] - excess)
    while sum(widths) + 2 * (len(widths) - 1) > available:
        spare = [width - floor for width, floor in zip(widths, least, strict=True)]
        widest = spare.index(max(spare))
        if spare[widest] <= 0:
            break
        widths[widest] -= 1
    return widths


def print_fields(fields: Mapping[str, str]) -> None:
    """Print names and values, one pair a line; pairs with an empty value are left out."""
    shown = {name: value for name, value in fields.items() if value}
    width = max(map(len, shown), default=0) + 2
    for name, value in shown.items():
        print_styled(f"{name}:".ljust(width), value, style_of="field")


def print_section(title: str, body: str) -> None:
    """Print a titled block of text below what was printed before."""
    say(f"\n{title}:")
    say("\n".join(f"  {line}" if line else "" for line in body.splitlines()))


def print_json_section(title: str, value: Any) -> None:
    """Print a titled block of JSON below what was printed before."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print_section(title, neutralize_json(text) if sys.stdout.isatty() else text)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


class NoteHandler(logging.Handler):
    """Prints the product's own log records the way the command line prints its notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        note(record.getMessage(), label=f"{record.levelname.lower()}:")
