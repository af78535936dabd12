"""Imports go one way, and each outside package has one place. The two tables below are the rules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
SOURCE_ROOTS = (ROOT / "runner", ROOT / "server")

#: From the bottom up: a module imports from its own layer and from lower ones. A package stands for all in it.
LAYERS = (
    {
        "errors",
        "config",
        "cron",
        "zones",
        "jsontext",
        "models",
        "clock",
        "settings",
        "aio",
        "tokens",
        "audit",
        "retention",
        "secrets",
        "egress",
    },
    {"ports", "telemetry"},
    {
        "triggers",
        "ahead",
        "compression",
        "handoff",
        "resources",
        "clockwatch",
        "firelog",
        "firing",
        "polling",
        "purging",
        "retry",
        "scheduler",
        "executor",
        "recovery",
        "warming",
        "run",
        "runsecrets",
        "vault",
        "worker",
        "lease",
        "output",
        "sampling",
    },
    {"api", "store", "sandbox"},
    {"wiring", "testing", "announce", "observed"},
    {"", "cli", "demo", "client"},
)
#: Up to here nothing knows a driver.
CORE_LAYER = 2
SERVER_LAYER = len(LAYERS)

#: The seed's classes are made without arguments; these fetch the shared runtime, inside a function, when asked to work.
MAY_IMPORT_WIRING_IN_A_FUNCTION = {"handoff", "resources", "executor", "scheduler"}

#: Outside package -> prefixes of the modules that may import it.
HOMES = {
    "pymongo": ("harness.store.mongo",),
    "motor": ("harness.store.mongo",),
    "bson": ("harness.store.mongo",),
    "aiosqlite": ("harness.store.sqlite",),
    "sqlite3": ("harness.store.sqlite",),
    "docker": ("harness.sandbox.",),
    "croniter": ("harness.cron",),
    "cryptography": ("harness.secrets.cipher",),
    "aiohttp": ("harness.client", "harness_server"),
    "prometheus_client": ("harness_server",),
    "opentelemetry": ("harness_server.tracing",),
    "typer": ("harness.cli", "harness.demo", "harness_server.cli"),
    "rich": ("harness.cli", "harness.demo"),
}

#: What `import harness` must not load: drivers, web servers and what only the command line needs.
HEAVY = (
    "pymongo",
    "motor",
    "docker",
    "aiosqlite",
    "sqlite3",
    "aiohttp",
    "typer",
    "rich",
    "prometheus_client",
    "opentelemetry",
    "cryptography",
)

ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def layer_of(module: str) -> int | None:
    """Return a module's layer; None for one that is not ours."""
    package, _, rest = module.partition(".")
    if package == "harness_server":
        return SERVER_LAYER
    if package != "harness":
        return None
    name = rest.partition(".")[0]
    for layer, names in enumerate(LAYERS):
        if name in names:
            return layer
    raise LookupError(f"{module} is in no layer; give it one in LAYERS of {Path(__file__).name}")


def imports_of(
    module: str, tree: ast.Module, known: frozenset[str], *, is_package: bool
) -> Iterator[tuple[str, int, bool]]:
    """Yield each imported module, with its line and whether the import stands in a function."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, in_function
            elif isinstance(child, ast.ImportFrom):
                origin = child.module or ""
                if child.level:
                    parts = module.split(".") if is_package else module.split(".")[:-1]
                    origin = ".".join([*parts[: len(parts) - child.level + 1], *([origin] if origin else [])])
                for alias in child.names:
                    submodule = f"{origin}.{alias.name}"
                    yield submodule if submodule in known else origin, child.lineno, in_function
            else:
                nested = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, in_function or nested)

    yield from visit(tree, in_function=False)


def find_violations(
    module: str, source: str, known: frozenset[str] = frozenset(), *, is_package: bool = False
) -> list[str]:
    tree = ast.parse(source)
    own_layer = layer_of(module)
    assert own_layer is not None
    found = []
    for target, line, in_function in imports_of(module, tree, known, is_package=is_package):
        layer = layer_of(target)
        if layer is None:
            homes = HOMES.get(target.partition(".")[0])
            if homes and not module.startswith(homes):
                found.append(f"{module}:{line} imports {target}, which only {' and '.join(homes)} may")
        elif layer > own_layer:
            name = module.partition(".")[2]
            if target == "harness.wiring" and in_function and name in MAY_IMPORT_WIRING_IN_A_FUNCTION:
                continue
            found.append(f"{module}:{line} imports {target} from a layer above")
    if module != "harness.settings":
        found.extend(f"{module}:{line} reads the environment" for line in reads_of_environment(tree))
    return found


def reads_of_environment(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in ENVIRONMENT_NAMES and isinstance(node.value, ast.Name) and node.value.id == "os":
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in ENVIRONMENT_NAMES)


def source_files() -> dict[str, Path]:
    """Return our modules by dotted name."""
    files = {}
    for root in SOURCE_ROOTS:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def test_no_module_breaks_the_rules() -> None:
    files = source_files()
    assert "harness.ports" in files
    violations = [
        violation
        for module, path in files.items()
        for violation in find_violations(
            module, path.read_text(), frozenset(files), is_package=path.name == "__init__.py"
        )
    ]

    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("harness.models", "from harness.ports import Store", "harness.models:1 imports harness.ports from a layer above"),
        ("harness.ports", "import harness.executor", "imports harness.executor from a layer above"),
        ("harness.executor", "import os\nfrom harness.store.sqlite import SqliteStore", "harness.executor:2"),
        ("harness.executor", "from harness.wiring import shared_runtime", "imports harness.wiring"),
        ("harness.worker", "def f():\n    from harness.wiring import shared_runtime", "imports harness.wiring"),
        ("harness.handoff", "async def f():\n    from harness.store import mongo", "imports harness.store.mongo"),
        ("harness.handoff", "if TYPE_CHECKING:\n    from harness.store.mongo import MongoStore", "harness.store.mongo"),
        ("harness.handoff", "from harness import AgentExecutor", "imports harness from a layer above"),
        ("harness.handoff", "from . import store", "imports harness.store from a layer above"),
        ("harness.store.mongo", "from ..wiring import make_store", "imports harness.wiring"),
        ("harness.client", "from harness_server.app import make_app", "imports harness_server.app"),
        ("harness.store.sqlite", "import pymongo.errors", "imports pymongo.errors, which only harness.store.mongo"),
        ("harness.store.mongo", "import sqlite3", "imports sqlite3"),
        ("harness.executor", "def f():\n    import docker", "imports docker"),
        ("harness.executor", "from aiohttp import web", "imports aiohttp"),
        ("harness.cli.runner", "import prometheus_client", "imports prometheus_client, which only harness_server may"),
        ("harness.worker", "from rich.console import Console", "imports rich.console"),
        ("harness_server.app", "import typer", "imports typer"),
        ("harness.cli.app", "def f():\n    from harness_server.cli import serve", "imports harness_server.cli"),
        ("harness.cli.app", "import aiohttp", "imports aiohttp, which only harness.client and harness_server may"),
        ("harness.wiring", "from harness_server.app import make_app", "imports harness_server.app"),
        ("harness.cli.app", "import os\ntoken = os.environ['TOKEN']", "harness.cli.app:2 reads the environment"),
        ("harness_server.app", "from os import getenv", "reads the environment"),
    ],
)  # fmt: skip
def test_the_checker_finds(module: str, source: str, complaint: str) -> None:
    violations = find_violations(module, source, frozenset({"harness.store", "harness.store.mongo"}))

    assert len(violations) == 1
    assert complaint in violations[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness.handoff", "from __future__ import annotations\nimport json\nfrom harness.compression import Compressor"),
        ("harness.handoff", "async def f():\n    from harness.wiring import shared_runtime"),
        ("harness.store.mongo", "import pymongo\nfrom harness.store.documents import encode"),
        ("harness.store.mongo_codec", "from bson import BSON"),
        ("harness.sandbox.docker", "import docker\nfrom harness.ports import Sandbox"),
        ("harness.wiring", "from harness.store.mongo import MongoStore"),
        ("harness.cli.app", "import typer\nfrom harness_client_of_somebody import x"),
        ("harness_server.routes.tasks", "from aiohttp import web\nfrom harness import AgentExecutor"),
        ("harness.settings", "import os\nos.environ"),
    ],
)  # fmt: skip
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert find_violations(module, source) == []


def test_a_module_without_a_layer_is_asked_to_take_one() -> None:
    with pytest.raises(LookupError, match=r"harness\.brand_new is in no layer"):
        find_violations("harness.brand_new", "")


def test_importing_the_library_loads_no_driver_and_no_web_server() -> None:
    core = [
        name for name in source_files() if name.startswith("harness.") and (layer_of(name) or 0) <= CORE_LAYER
    ]
    assert "harness.executor" in core
    program = f"import sys, harness, {', '.join(core)}\nprint(*({set(HEAVY)!r} & sys.modules.keys()))"

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.split() == []
