"""The demo's agent, measured against samples that were counted by hand."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from harness.demo import stdlib_audit
from harness.demo.stdlib_audit import Function, Measures, list_modules, measure, module_name, run

SAMPLE = '''\
"""A module with a docstring."""

import os


def documented(x):
    """Say so."""
    return x


def undocumented(x): return x


def _private():
    def local():
        pass


class Public:
    """A class."""

    def method(self):
        """A method."""

    async def other(self):
        class Local:
            def deep(self): pass

    def __len__(self):
        return 0


class _Hidden:
    def method(self):
        """Public by its own name only."""
'''


def complexity_of(body: str) -> int:
    """Return the complexity of a function with this body."""
    source = "async def f(a, b, c):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    (function,) = measure(source.encode(), "m").functions
    return function.complexity


def test_lines_classes_and_functions_are_counted() -> None:
    measures = measure(SAMPLE.encode(), "sample")
    assert measures.lines == 35
    assert measures.classes == 3
    assert sorted(function.name for function in measures.functions) == [
        "sample.Public.__len__",
        "sample.Public.method",
        "sample.Public.other",
        "sample.Public.other.Local.deep",
        "sample._Hidden.method",
        "sample._private",
        "sample._private.local",
        "sample.documented",
        "sample.undocumented",
    ]


def test_docstring_coverage_is_of_what_is_public() -> None:
    measures = measure(SAMPLE.encode(), "sample")
    # sample, documented, undocumented, Public, Public.method, Public.other
    assert measures.public == 6
    # all of them but undocumented and Public.other
    assert measures.documented == 4


def test_nothing_in_a_private_module_is_public() -> None:
    assert measure(SAMPLE.encode(), "package._sample").public == 0


def test_blank_docstring_documents_nothing() -> None:
    assert measure(b'"""  """\n', "m").documented == 0


def test_position_and_length_of_a_function_leave_its_decorators_out() -> None:
    source = b"@first\n@second\ndef f():\n    a = 1\n\n    return a\n\n\nx = 1\n"
    assert measure(source, "m").functions == [Function("m.f", line=3, lines=4, complexity=1)]


@pytest.mark.parametrize(
    ("source", "lines"), [(b"", 0), (b"\n", 1), (b"x = 1", 1), (b"x = 1\n", 1), (b"x = 1\n\ny = 2", 3)]
)
def test_last_line_counts_with_and_without_its_end(source: bytes, lines: int) -> None:
    assert measure(source, "m").lines == lines


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\nelse: pass", 2),
        ("if a: pass\nelif b: pass\nelif c: pass\nelse: pass", 4),
        ("return a if b else c", 2),
        ("for x in a: pass", 2),
        ("for x in a: pass\nelse: pass", 2),
        ("async for x in a: pass", 2),
        ("while a:\n    if b: break", 3),
        ("try: pass\nexcept ValueError: pass\nexcept OSError: pass\nelse: pass\nfinally: pass", 3),
        ("try: pass\nexcept* ValueError: pass", 2),
        ("with a, b: pass", 1),
        ("assert a", 2),
        ("return a and b and c", 3),
        ("return a and (b or c)", 3),
        ("return not a", 1),
        ("return a < b < c", 1),
        ("return [x for x in a]", 2),
        ("return {x: y for x in a if x if b for y in x}", 5),
        ("return lambda x: x or a", 2),
        ("match a:\n    case 1: pass\n    case 2 | 3: pass\n    case _: pass", 3),
        ("match a:\n    case [x, *_] if x: pass\n    case other: pass", 3),
        ("match a:\n    case other if b: pass", 2),
    ],
)
def test_cyclomatic_complexity_is_one_and_the_decisions(body: str, complexity: int) -> None:
    assert complexity_of(body) == complexity


def test_decisions_of_an_inner_function_are_its_own() -> None:
    source = textwrap.dedent(
        """
        @decorate(1 if x else 2)
        def outer(a):
            if a:
                def inner(b=a or 1):
                    while b:
                        pass
            return inner
        """
    )
    found = {function.name: function.complexity for function in measure(source.encode(), "m").functions}
    # `a or 1`, a default, is evaluated in outer; the decorator's choice is made in the module.
    assert found == {"m.outer": 3, "m.outer.inner": 2}


def test_source_nested_deeper_than_the_interpreters_stack_is_measured() -> None:
    depth = sys.getrecursionlimit()
    assert complexity_of(f"return {'a + ' * depth}(a or b)") == 2


def test_declared_encoding_is_minded() -> None:
    source = '# -*- coding: latin-1 -*-\n"""Fünf."""\n'.encode("latin-1")
    assert measure(source, "m") == Measures(lines=2, classes=0, functions=[], public=1, documented=1)


def make_library(root: Path, count: int) -> Path:
    for number in range(count):
        (root / f"m{number:02}.py").write_text(f"def f{number}(a):\n" + "    if a: pass\n" * (number + 1))
    return root


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(state))
    return copy


def run_to_the_end(root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    states: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    while not state.get("done"):
        state, _ = run(through_json(state), root)
        states.append(through_json(state))
    return states, state


def test_library_is_audited_in_ten_runs_and_every_module_once(tmp_path: Path) -> None:
    states, last = run_to_the_end(make_library(tmp_path, 47))
    assert [state["cursor"] for state in states] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 47]
    assert last["counts"] == {
        "modules": 47,
        "lines": sum(number + 2 for number in range(47)),
        "classes": 0,
        "functions": 47,
        "complexity": sum(number + 2 for number in range(47)),
        "public": 94,
        "documented": 0,
    }


def test_findings_are_bounded_and_sorted(tmp_path: Path) -> None:
    _, last = run_to_the_end(make_library(tmp_path, 30))
    assert [entry["complexity"] for entry in last["most_complex"]] == list(range(31, 21, -1))
    assert last["most_complex"][0] == {"name": "m29.f29", "line": 1, "lines": 31, "complexity": 31}
    assert [entry["name"] for entry in last["largest"]] == [f"m{number:02}" for number in range(29, 19, -1)]
    assert len(last["longest"]) == 10


def test_run_after_the_last_says_so_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, last = run_to_the_end(make_library(tmp_path, 12))
    capsys.readouterr()
    state, summary = run(through_json(last), tmp_path)
    assert state == last
    assert summary.startswith("nothing left to do")
    assert capsys.readouterr().out == "nothing left to do: all 12 modules are audited\n"


def test_other_library_is_audited_from_its_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, last = run_to_the_end(make_library(tmp_path, 12))
    (tmp_path / "new.py").write_text("")
    capsys.readouterr()
    state, _ = run(through_json(last), tmp_path)
    assert state["counts"]["modules"] == 2
    assert "from the beginning" in capsys.readouterr().out


def test_module_that_is_no_python_is_recorded_and_the_rest_measured(tmp_path: Path) -> None:
    make_library(tmp_path, 2)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "nul.py").write_bytes(b"\0")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    _, last = run_to_the_end(tmp_path)
    assert last["counts"]["modules"] == 5
    assert last["counts"]["functions"] == 2
    assert last["unreadable"]["count"] == 3
    names = [entry["name"] for entry in last["unreadable"]["first"]]
    assert names == ["broken", "gone", "nul"]
    assert last["unreadable"]["first"][0]["problem"].startswith("SyntaxError: ")


def test_library_without_modules_is_done_at_once(tmp_path: Path) -> None:
    state, _ = run({}, tmp_path)
    assert state["done"]


def test_third_party_packages_are_not_the_library(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "p/__init__.py",
        "p/b.py",
        "site-packages/c.py",
        "dist-packages/d/e.py",
        "p/data.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [module_name(path, tmp_path) for path in list_modules(tmp_path)] == ["a", "p", "p.b"]


def test_progress_lines_fit_a_narrow_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(100):
        (tmp_path / f"{'package' * 6}{number:02}.py").write_text("x = 1\n")
    run({}, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + stdlib_audit.PROGRESS_LINES
    assert max(map(len, lines)) <= 74
