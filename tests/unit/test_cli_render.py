from __future__ import annotations

import io
import json

import pytest

from harness.cli.render import note, print_fields, print_json, print_section, print_styled, print_table, say


class Terminal(io.StringIO):
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._patch = patch

    @property
    def encoding(self) -> str:  # type: ignore[override] # StringIO has none
        return "utf-8"

    def isatty(self) -> bool:
        return True

    def take_over(self) -> None:
        """Become both standard streams; in the test itself, since pytest sets its own between the phases."""
        self._patch.setattr("sys.stdout", self)
        self._patch.setattr("sys.stderr", self)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


ROWS = [["1", "a" * 50, "completed"], ["22", "b\x1b[2J\nc", ""]]


def test_a_table_in_a_pipe_is_plain_whole_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["ID", "NAME", "STATUS"], ROWS, give_way="NAME")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ID  {'NAME':50}  STATUS"
    assert lines[1] == f"1   {'a' * 50}  completed"
    assert lines[2] == f"22  {'b^[[2J c':50}  -"


def test_a_table_on_a_terminal_fits_its_width(terminal: Terminal) -> None:
    terminal.take_over()
    print_table(["ID", "NAME", "STATUS"], ROWS, give_way="NAME")
    text = terminal.getvalue()
    assert "\x1b[32mcompleted" in text
    assert "…" in text
    plain = text.replace("\x1b[32m", "").replace("\x1b[0m", "").replace("\x1b[1m", "")
    assert max(map(len, plain.splitlines())) <= 40
    assert "\x1b" not in plain
    assert all(header in plain for header in ("ID", "NAME", "STATUS", "completed"))


def test_a_wide_table_keeps_its_identifying_columns(terminal: Terminal) -> None:
    terminal.take_over()
    print_table(["ID", "NAME", "NOTE"], [["123456", "greeter", "n" * 500]], give_way="NOTE")
    assert "123456" in terminal.getvalue()
    assert "greeter" in terminal.getvalue()


def test_text_in_brackets_is_no_markup(terminal: Terminal) -> None:
    terminal.take_over()
    print_table(["NAME"], [["[bold]x[/bold]"]], give_way="NAME")
    note("[red]y[/red] :smile:")
    print_fields({"a": "[b]z[/b]"})
    for text in ("[bold]x[/bold]", "[red]y[/red] :smile:", "[b]z[/b]"):
        assert text in terminal.getvalue()


def test_no_view_lets_an_escape_sequence_reach_a_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    evil = "\x1b[2J\x9b1m"
    say(evil)
    note(evil)
    print_fields({"name": evil})
    print_section("code", evil)
    print_styled("OK ", evil)
    print_table(["A"], [[evil]], give_way="A")
    print_json({"a": evil})
    assert "\x1b" not in terminal.getvalue()
    assert "\x9b" not in terminal.getvalue()


def test_text_in_a_pipe_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say("\x1b[31mred")
    assert capsys.readouterr().out == "\x1b[31mred\n"


def test_json_is_ascii_where_the_stream_is_not_utf8() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="latin-1", write_through=True)
    print_json({"a": "日本"}, stream=stream)
    assert json.loads(buffer.getvalue()) == {"a": "日本"}


def test_fields_are_aligned_and_empty_ones_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"id": "1", "summary": "fine", "error": ""})
    assert capsys.readouterr().out == "id:      1\nsummary: fine\n"
