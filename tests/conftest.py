"""What holds for every test: nothing that it started outlives the whole run, the run ends, and who runs beside whom."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from time import monotonic, sleep

import hypothesis
import psutil
import pytest
from tests.sandboxes import no_container_is_left, sandbox_image
from xdist.scheduler import LoadScopeScheduling

# Here alone: a fixture that is imported in two places is two, and one's last look is before the other's servers end.
__all__ = ["no_container_is_left", "sandbox_image"]

# How long examples take says how busy the machine is; a hang ends by the timeout of its test.
hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("here")


def _left() -> list[str]:
    me = psutil.Process()
    children = [f"process {child.pid}: {child.name()}" for child in me.children(recursive=True)]
    # The engine's; a database driver's own pool of threads ends with the interpreter.
    threads = [
        f"thread {thread.name}" for thread in threading.enumerate() if thread.name.startswith("docker")
    ]
    connections = [
        f"connection to {connection.raddr}"
        for connection in me.net_connections(kind="unix")
        if "docker.sock" in str(connection.raddr)
    ]
    return children + threads + connections


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Looks at the end for processes, for threads of the engine's client and for connections to an engine.

    Containers are looked for by ``tests.sandboxes.no_container_is_left``.
    """
    yield
    deadline = monotonic() + 10
    while (left := _left()) and monotonic() < deadline:
        sleep(0.1)
    assert left == []


def _kept_threads() -> list[str]:
    # Those of an executor, such as Motor's one for the whole process, are told to end by the interpreter itself.
    return [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and not thread.name.startswith(("MainThread", "ThreadPoolExecutor-"))
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the threads that keep the process from ending: those of a store that a failed test left open."""
    if kept := _kept_threads():
        terminalreporter.section("threads left running")
        terminalreporter.write_line(", ".join(kept))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End also while such threads run, as the interpreter would wait for them without end."""
    if _kept_threads():
        sys.stdout.flush()
        os._exit(1)


class _AcceptanceInOneLane(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """One file's tests run one after the other, and so do all acceptance tests, each of which is a load of its own."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "tests/acceptance" if file.startswith("tests/acceptance/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _AcceptanceInOneLane:
    """Share the tests out over the processes of `-n`, in the order of their collection: acceptance tests take longest."""
    config.option.loadscopereorder = False
    return _AcceptanceInOneLane(config, log)
