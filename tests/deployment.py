"""Helpers for tests of what people deploy: compose.yaml, and the images of server/ and runner/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from docker.utils import exclude_paths

ROOT = Path(__file__).parent.parent
#: Variables that compose.yaml asks for.
REQUIRED = {
    "HARNESS_MONGO_PASSWORD": "not-a-secret-1",
    "HARNESS_MONGO_ROOT_PASSWORD": "not-a-secret-2",
    "HARNESS_DOCKER_GID": "999",
}


def compose_command() -> list[str]:
    """Docker Compose: the docker command's plugin, else what scripts/test-tools installed."""
    plugin = ["docker", "compose"]
    if shutil.which("docker"):
        asked = subprocess.run([*plugin, "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return plugin
    own = Path(sys.executable).with_name("docker-compose")
    assert own.exists(), "there is no Docker Compose: install its plugin, or run scripts/test-tools"
    return [str(own)]


def compose(
    *arguments: str, variables: dict[str, str], files: tuple[Path, ...] = (), timeout_seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run it on compose.yaml, with no variables but these."""
    kept = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DOCKER_CONFIG")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    named = [part for file in (ROOT / "compose.yaml", *files) for part in ("--file", str(file))]
    return subprocess.run(
        # No .env of whoever runs the tests.
        [*compose_command(), "--env-file", "/dev/null", *named, *arguments],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def resolved(*arguments: str, **changes: str) -> dict[str, Any]:
    """compose.yaml as Docker Compose understands it."""
    answer = compose(*arguments, "config", "--format", "json", variables=REQUIRED | changes)
    assert answer.returncode == 0, answer.stderr
    return dict(json.loads(answer.stdout))


def build_context() -> list[str]:
    """Files that a build at the top of the repository is sent, as .dockerignore says."""
    patterns = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    # The SDK sends it along whatever it says.
    found = exclude_paths(str(ROOT), patterns) - {".dockerignore"}
    return sorted(path for path in found if (ROOT / path).is_file())
