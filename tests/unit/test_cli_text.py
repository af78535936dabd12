from __future__ import annotations

import itertools
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.text import (
    TerminalText,
    neutralize,
    neutralize_json,
    one_line,
    schedule_text,
    seconds_text,
    size_text,
)

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\udc9b\x7f"


def is_safe(text: str) -> bool:
    return all(char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in text)


def test_escape_sequences_become_visible() -> None:
    assert neutralize("\x1b[31mred\x1b[0m \x9b2J \x07 \x7f") == "^[[31mred^[[0m <U+009B>2J ^G ^?"


def test_marks_that_reorder_text_become_visible() -> None:
    assert neutralize("abc\u202edef\u2066") == "abc<U+202E>def<U+2066>"


def test_ordinary_text_of_all_languages_stays() -> None:
    text = "tab\tnewline\nÅse 日本語 🙂 👩\u200d👩\u200d👧 नमस्ते"
    assert neutralize(text) == text


@given(st.text(st.characters()))
def test_no_text_is_unsafe_after_neutralizing(text: str) -> None:
    assert is_safe(neutralize(text))


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_neutralized_json_is_safe_and_the_same_document(value: dict[str, object]) -> None:
    shown = neutralize_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert is_safe(shown)
    assert json.loads(shown) == value


def test_one_line_has_no_line_ends_and_no_escapes() -> None:
    assert one_line("a\n b\r\n\tc \x1b[H") == "a b c ^[[H"


def test_a_character_cut_in_two_pieces_is_shown_whole() -> None:
    terminal = TerminalText()
    data = "€".encode()
    assert terminal.feed(data[:1]) + terminal.feed(data[1:]) == "€"


def test_an_unfinished_character_shows_as_a_replacement_at_the_end() -> None:
    terminal = TerminalText()
    assert terminal.feed(b"a\xe2\x82") == "a"
    assert terminal.feed(b"", final=True) == "\ufffd"


def test_a_progress_bar_becomes_lines() -> None:
    terminal = TerminalText()
    pieces = [b"10%\r", b"20%\r", b"\ndone\r", b"", b"\n", b"\n"]
    assert "".join(terminal.feed(piece) for piece in pieces) == "10%\n20%\ndone\n\n"


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_what_a_terminal_shows_does_not_depend_on_how_output_is_cut(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\x00", b"\r").replace(b"\x01", b"\n")
    whole = TerminalText()
    expected = whole.feed(data) + whole.feed(b"", final=True)
    pieces = TerminalText()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    shown = "".join(pieces.feed(data[start:end]) for start, end in itertools.pairwise(edges))
    assert shown + pieces.feed(b"", final=True) == expected
    assert is_safe(expected)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 ms"),
        (0.0243, "24 ms"),
        (0.9996, "1.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_read_well(seconds: float, expected: str) -> None:
    assert seconds_text(seconds) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**2, "5.0 MiB"), (3 * 1024**3, "3.0 GiB")],
)
def test_sizes_read_well(size: int, expected: str) -> None:
    assert size_text(size) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "-"),
        ({"schedule": {"type": "interval", "interval_minutes": 15}}, "every 15 min"),
        ({"schedule": {"type": "interval", "interval_seconds": 30}}, "every 30 s"),
        ({"schedule": {"type": "cron", "cron": "0 3 * * *"}}, "cron 0 3 * * *"),
        (
            {"schedule": {"type": "cron", "cron": "@daily", "timezone": "Europe/Paris"}},
            "cron @daily Europe/Paris",
        ),
        ({"schedule": {"type": "cron", "cron": "0 3 * * *", "enabled": False}}, "cron 0 3 * * * (paused)"),
    ],
)
def test_schedules_read_well(config: dict[str, object], expected: str) -> None:
    assert schedule_text(config) == expected
