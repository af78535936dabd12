"""The demo's agent: audits the Python standard library of the sandbox it runs in, a batch of modules per run.

It runs inside the container, with the standard library only. Every module is parsed with `ast` and measured; how far it
came and what it found travels from run to run in the handoff document, which stays small however many runs there are:
counts, and top-ten lists.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import warnings
from pathlib import Path
from typing import Any, NamedTuple

#: The whole library takes this many runs.
RUNS = 10
#: Lines of progress per run.
PROGRESS_LINES = 5
#: Characters for the names of modules on a line of progress; the line then has 74 at most.
NAMES_WIDTH = 48
#: Length of each list of findings.
TOP = 10

_LOOPS_AND_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.Assert,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    """One ``def``, nested ones and methods included."""

    #: ``module.Class.method``
    name: str
    line: int
    #: From the line of the ``def`` to its last, both included.
    lines: int
    #: Cyclomatic: 1 and the decisions of its body; see `decisions`.
    complexity: int


class Measures(NamedTuple):
    """What one module's source says."""

    lines: int
    classes: int
    functions: list[Function]
    #: The module, its classes, functions and methods that are public: no name on the way begins with an underscore,
    #: and they are not local to a function.
    public: int
    #: Those of them that have a docstring.
    documented: int


class _Block:
    """A module, class or function while it is being measured."""

    def __init__(self, node: ast.AST, name: str, *, public: bool) -> None:
        self.node = node
        self.name = name
        self.public = public
        self.decisions = 0


def measure(source: bytes, module: str) -> Measures:
    """Measure one module.

    Args:
        source: The file as it is; `ast` minds the encoding it declares.
        module: Its dotted name.

    Raises:
        SyntaxError: It is no Python of this interpreter.
        ValueError: It holds NUL bytes.
        RecursionError, MemoryError: It nests deeper than the parser goes.
    """
    tree = ast.parse(source)
    blocks = [_Block(tree, module, public=not any(part.startswith("_") for part in module.split(".")))]
    todo: list[tuple[ast.AST, _Block]] = [(tree, blocks[0])]
    # A list instead of recursion: generated modules nest deeper than the interpreter's stack.
    while todo:
        node, block = todo.pop()
        block.decisions += decisions(node)
        inner = block
        if isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
            public = block.public and not isinstance(block.node, _FUNCTIONS) and not node.name.startswith("_")
            inner = _Block(node, f"{block.name}.{node.name}", public=public)
            blocks.append(inner)
        for field, value in ast.iter_fields(node):
            # Decorators, defaults and bases are evaluated outside of what they belong to.
            owner = inner if field == "body" else block
            children = value if isinstance(value, list) else [value]
            todo.extend((child, owner) for child in children if isinstance(child, ast.AST))

    functions = [
        Function(
            block.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1, block.decisions + 1
        )
        for block in blocks
        if isinstance(node := block.node, _FUNCTIONS)
    ]
    public_blocks = [block for block in blocks if block.public]
    return Measures(
        # The last line may lack its end.
        lines=source.count(b"\n") + (source[-1:] not in (b"", b"\n")),
        classes=sum(isinstance(block.node, ast.ClassDef) for block in blocks),
        functions=functions,
        public=len(public_blocks),
        documented=sum(_has_docstring(block.node) for block in public_blocks),
    )


def decisions(node: ast.AST) -> int:
    """Return how many ways the flow of control can fork at a node.

    One for each ``if``, ``elif`` and conditional expression, loop, ``except`` and ``assert``; one for each ``and`` and
    ``or``; in comprehensions one for each ``for`` and ``if``; one for each ``case`` that does not match everything,
    and one for its guard. A lambda's decisions are those of the function around it; a function within is on its own.
    """
    if isinstance(node, _LOOPS_AND_BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        matches_all = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
        return (not matches_all) + (node.guard is not None)
    return 0


def _has_docstring(node: ast.AST) -> bool:
    assert isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS))
    return bool((ast.get_docstring(node, clean=False) or "").strip())


def list_modules(root: Path) -> list[Path]:
    """Return the library's Python files, sorted; third-party packages below it are not part of it."""
    foreign = {"site-packages", "dist-packages"}
    files = (path for path in root.rglob("*.py") if foreign.isdisjoint(path.relative_to(root).parts))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of a file below `root`: ``email/mime/__init__.py`` is ``email.mime``."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def begin(python: str, fingerprint: str, total: int) -> dict[str, Any]:
    """Return the state before the first module."""
    return {
        "python": python,
        # Of the list of modules: another library, as in a new image, is audited from its beginning.
        "fingerprint": fingerprint,
        "done": total == 0,
        "cursor": 0,
        "total": total,
        "batch": max(1, -(-total // RUNS)),
        "counts": dict.fromkeys(
            ("modules", "lines", "classes", "functions", "complexity", "public", "documented"), 0
        ),
        "most_complex": [],
        "longest": [],
        "largest": [],
        "unreadable": {"count": 0, "first": []},
    }


def audit_batch(state: dict[str, Any], files: list[Path], root: Path) -> None:
    """Audit the next batch of `files` and write what was found into `state`."""
    start = state["cursor"]
    end = min(start + state["batch"], len(files))
    step = max(1, -(-(end - start) // PROGRESS_LINES))
    for first in range(start, end, step):
        last = min(first + step, end)
        lines_before, leader_before = state["counts"]["lines"], state["most_complex"][:1]
        for path in files[first:last]:
            _audit_module(state, path, root)
        names = f"{module_name(files[first], root)} … {module_name(files[last - 1], root)}"
        names = names if len(names) <= NAMES_WIDTH else names[: NAMES_WIDTH - 1] + "…"
        lines = state["counts"]["lines"] - lines_before
        print(f"{last:>4}/{len(files)}  {names:<{NAMES_WIDTH}} {lines:>7,} lines")
        leader = state["most_complex"][:1]
        if leader != leader_before:
            print(f"      most complex so far ({leader[0]['complexity']}): {leader[0]['name']}")
    state["cursor"] = end
    state["done"] = end == len(files)


def _audit_module(state: dict[str, Any], path: Path, root: Path) -> None:
    name = module_name(path, root)
    counts, unreadable = state["counts"], state["unreadable"]
    counts["modules"] += 1
    try:
        measures = measure(path.read_bytes(), name)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = f"{type(error).__name__}: {error}".replace("<unknown>, ", "")[:200]
        print(f"      can't read {name}: {problem}")
        unreadable["count"] += 1
        unreadable["first"] = [*unreadable["first"], {"name": name, "problem": problem}][:TOP]
        return
    counts["lines"] += measures.lines
    counts["classes"] += measures.classes
    counts["functions"] += len(measures.functions)
    counts["complexity"] += sum(function.complexity for function in measures.functions)
    counts["public"] += measures.public
    counts["documented"] += measures.documented
    state["largest"] = _top(state["largest"], [{"name": name, "lines": measures.lines}], by="lines")
    found = [function._asdict() for function in measures.functions]
    state["most_complex"] = _top(state["most_complex"], found, by="complexity")
    state["longest"] = _top(state["longest"], found, by="lines")


def _top(old: list[dict[str, Any]], new: list[dict[str, Any]], *, by: str) -> list[dict[str, Any]]:
    return sorted(old + new, key=lambda entry: (-entry[by], entry["name"]))[:TOP]


def summarize(state: dict[str, Any]) -> str:
    """Return the line for people that goes with a state."""
    counts = state["counts"]
    worst = state["most_complex"][0]["name"] if state["most_complex"] else "none yet"
    return (
        f"{counts['modules']} of {state['total']} modules, {counts['lines']:,} lines, "
        f"{counts['functions']:,} functions; most complex: {worst}"
    )


def run(context: dict[str, Any], root: Path) -> tuple[dict[str, Any], str]:
    """Do one run's share of the work.

    Args:
        context: The state that the previous run left; empty on the first.
        root: The library's folder.

    Returns:
        The state and the summary to hand over.
    """
    files = list_modules(root)
    python = platform.python_version()
    names = "\n".join(module_name(path, root) for path in files)
    fingerprint = hashlib.sha256(f"{python}\n{names}".encode()).hexdigest()[:16]
    state = context
    if context.get("fingerprint") != fingerprint:
        why = "first run" if not context else "not the library of the runs before, so from the beginning"
        print(f"{why}: {len(files)} modules of Python {python} to audit, in {RUNS} runs")
        state = begin(python, fingerprint, len(files))
    elif context["done"]:
        print(f"nothing left to do: all {context['total']} modules are audited")
        return context, f"nothing left to do; {summarize(context)}"
    else:
        print(f"going on after {context['cursor']} modules")
    with warnings.catch_warnings():
        # Old modules have invalid escape sequences; that is nothing new about them.
        warnings.simplefilter("ignore")
        audit_batch(state, files, root)
    return state, summarize(state)


if __name__ == "__main__":
    import handoff  # only inside a sandbox is there one

    handoff.save(*run(handoff.context, Path(sysconfig.get_path("stdlib"))))
