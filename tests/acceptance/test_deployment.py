"""The images of server/ and runner/, built on the base that needs no registry, started by compose.yaml, and used.

All that differs from what people run is the base, and the store: no registry, so no MongoDB; SQLite on a volume.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from docker import APIClient
from tests.deployment import REQUIRED, ROOT, build_context, compose
from tests.services import get

from harness.client import HarnessClient
from harness.errors import AuthenticationError
from harness.models import AgentDraft, TaskStatus
from harness.sandbox.locate import find_engine
from harness.settings import Settings

OVERRIDE = """
services:
  server: &sqlite
    environment: {HARNESS_MONGODB_URI: "", HARNESS_LEASE_SECONDS: "5"}
    volumes: ["data:/data"]
    depends_on: !override
      socket-proxy: {condition: service_healthy}
    healthcheck: {interval: 1s}
  runner: *sqlite
  socket-proxy:
    healthcheck: {interval: 1s}
  mongo: !reset null
volumes:
  data: {}
  mongo-data: !reset null
"""


@dataclass
class Deployment:
    """A running compose project."""

    url: str
    variables: dict[str, str]
    override: Path
    client: APIClient

    def compose(self, *arguments: str) -> str:
        answer = compose(*arguments, variables=self.variables, files=(self.override,))
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def container(self, service: str) -> dict[str, Any]:
        name = f"{self.variables['COMPOSE_PROJECT_NAME']}-{service}-1"
        return dict(self.client.inspect_container(name))


def _build(client: APIClient, context: Path, base: str, tags: dict[str, str]) -> None:
    # The stage that both images share comes first, with a name, so that nothing nameless is left of it.
    for tag, (dockerfile, target) in {
        tags["build"]: ("server/Dockerfile", "build"),
        tags["server"]: ("server/Dockerfile", ""),
        tags["runner"]: ("runner/Dockerfile", ""),
    }.items():
        events = client.build(
            path=str(context),
            dockerfile=dockerfile,
            target=target,
            tag=tag,
            buildargs={"BASE": base},
            rm=True,
            forcerm=True,
            decode=True,
        )
        said = list(events)
        assert not [event for event in said if "error" in event], said[-20:]


def _context(folder: Path, python_version: str) -> Path:
    """The build's context: what .dockerignore lets through, the Dockerfiles and a wheelhouse."""
    for path in [*build_context(), ".dockerignore", "server/Dockerfile", "runner/Dockerfile"]:
        if not path.startswith("wheelhouse/"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    wheels = ROOT / ".venv" / f"wheelhouse-{python_version}"
    filled = subprocess.run(
        [ROOT / "scripts" / "wheelhouse", wheels, python_version], capture_output=True, text=True, check=False
    )
    assert filled.returncode == 0, filled.stderr
    shutil.copytree(wheels, folder / "wheelhouse")
    return folder


@pytest.fixture(scope="module")
def deployment(sandbox_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """compose.yaml at work, on images of this checkout; nothing is left of it."""
    address = find_engine(Settings.load())
    socket = urlsplit(address.url).path
    client = APIClient(address.url, version="auto", timeout=120)
    image: dict[str, Any] = client.inspect_image(sandbox_image)  # type: ignore[no-untyped-call]  # the SDK's decorator
    base = image["Config"]["Labels"]["io.agent-harness.base"]
    mark = f"test-{secrets.token_hex(4)}"
    tags = {name: f"agent-harness/{name}:{mark}" for name in ("build", "server", "runner")}
    folder = tmp_path_factory.mktemp("deployment")
    override = folder / "override.yaml"
    override.write_text(OVERRIDE)
    variables = REQUIRED | {
        "COMPOSE_PROJECT_NAME": f"harness-{mark}",
        "HARNESS_VERSION": mark,
        "HARNESS_PUBLISH": "127.0.0.1:",
        "HARNESS_DOCKER_SOCKET": socket,
        "HARNESS_DOCKER_GID": str(Path(socket).stat().st_gid),
    }
    found = Deployment("", variables, override, client)
    try:
        _build(client, _context(folder, _python_version(client, base)), base, tags)
        yield found
    finally:
        found.compose("down", "--volumes", "--timeout", "20")
        for tag in reversed(tags.values()):
            if client.images(name=tag):
                client.remove_image(tag, force=True)
        client.close()


def _python_version(client: APIClient, base: str) -> str:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    container = client.create_container(base, entrypoint=["python3", "-c", program])["Id"]
    try:
        client.start(container)
        client.wait(container)
        return str(client.logs(container).decode().strip())
    finally:
        client.remove_container(container, force=True)


@pytest.mark.timeout(300)  # Builds three images and starts three containers; about 40 s on two free cores.
async def test_the_images_run_agents_through_the_proxy_and_are_healthy(
    deployment: Deployment, sandbox_image: str
) -> None:
    refused = compose(
        "run", "--rm", "-T", "server", "serve", variables=deployment.variables, files=(deployment.override,)
    )
    assert "harness tokens create" in refused.stdout + refused.stderr

    assert sandbox_image in deployment.compose("run", "--rm", "-T", "images")
    made = deployment.compose(
        "run", "--rm", "-T", "server", "tokens", "create", "admin", "--scope", "admin", "--json"
    )
    token = json.loads(made)["text"]
    deployment.compose("up", "--detach", "--wait", "--no-build")
    url = f"http://{deployment.compose('port', 'server', '8000').strip()}"

    async with HarnessClient(url) as anybody:
        with pytest.raises(AuthenticationError):
            await anybody.list_agents()
    async with HarnessClient(url, token=token) as client:
        agent = await client.create_agent(AgentDraft(name="hello", code="print('hello')"))
        task = await client.run(agent.id, wait_seconds=30)
    assert (task.status, task.result) == (TaskStatus.COMPLETED, "hello")
    assert (await get(f"{url}/readyz"))[0] == 200

    for service in ("server", "runner", "socket-proxy"):
        seen = deployment.container(service)
        assert seen["State"]["Health"]["Status"] == "healthy"
        assert seen["Config"]["User"] == "10002:10002"
        assert seen["HostConfig"]["ReadonlyRootfs"] is True
        assert seen["Config"]["Labels"]["org.opencontainers.image.title"].startswith("Agent Harness")
    log = deployment.compose("logs", "--no-log-prefix", "socket-proxy")
    assert "call_refused" not in log

    deployment.compose("stop", "--timeout", "20")
    codes = {
        service: deployment.container(service)["State"]["ExitCode"]
        for service in ("server", "runner", "socket-proxy")
    }
    assert codes == {"server": 0, "runner": 0, "socket-proxy": 0}
