"""What unit tests of the command line share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.settings import get_settings


@pytest.fixture
def cli_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An embedded store of the test's own, and no engine."""
    for name in ("HARNESS_MONGODB_URI", "HARNESS_DOCKER_HOST", "HARNESS_URL", "HARNESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HARNESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
    logging.getLogger("harness").handlers.clear()
