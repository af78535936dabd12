"""Agents' images named by digest or id, on the real engine, which pulls from a registry of the test's own."""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from typing import Any
from urllib.parse import urlsplit

import pytest
from docker import APIClient
from tests.sandboxes import Lab, wait_until

from harness.clock import SystemClock
from harness.errors import ImageMissingError
from harness.models import Reason
from harness.sandbox.inspection import has_image
from harness.sandbox.locate import find_engine
from harness.sandbox.proxy.server import SocketProxy
from harness.settings import Settings
from harness.wiring import make_sandbox

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
REPOSITORY = "some/agent"


class Registry:
    """A registry with one image, by the distribution specification as far as a pull goes."""

    def __init__(self, folder: Path, archive: Path) -> None:
        """Serve what ``docker save`` wrote."""
        self._folder = folder
        with tarfile.open(archive) as saved:
            (image,) = json.loads(_read(saved, "manifest.json"))
            config = self._keep(saved, image["Config"], "application/vnd.docker.container.image.v1+json")
            layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip"
            layers = [self._keep(saved, layer, layer_type) for layer in image["Layers"]]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        data = json.dumps(manifest).encode()
        self.digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (folder / self.digest).write_bytes(data)
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                registry.answer(self, with_body=False)

            def do_GET(self) -> None:
                registry.answer(self, with_body=True)

            def log_message(self, *_: Any) -> None:
                pass

        # The engine takes a registry on loopback without TLS.
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server.server_port}/{REPOSITORY}@{self.digest}"

    def _keep(self, saved: tarfile.TarFile, name: str, media_type: str) -> dict[str, Any]:
        blob = self._folder / "blob"
        with blob.open("wb") as out:
            source = saved.extractfile(name)
            assert source is not None
            copyfileobj(source, out)
        with blob.open("rb") as written:
            digest = f"sha256:{hashlib.file_digest(written, 'sha256').hexdigest()}"
        size = blob.stat().st_size
        blob.rename(self._folder / digest)
        return {"mediaType": media_type, "size": size, "digest": digest}

    def answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        """Answer one request."""
        path = self._folder / handler.path.rpartition("/")[2]
        if handler.path != "/v2/" and not path.is_file():
            handler.send_error(404)
            return
        handler.send_response(200)
        size = 0 if handler.path == "/v2/" else path.stat().st_size
        handler.send_header("Content-Length", str(size))
        handler.send_header(
            "Content-Type", MANIFEST if path.name == self.digest else "application/octet-stream"
        )
        if size:
            handler.send_header("Docker-Content-Digest", path.name)
        handler.end_headers()
        if with_body and size:
            with path.open("rb") as blob:
                copyfileobj(blob, handler.wfile)


def _read(saved: tarfile.TarFile, name: str) -> bytes:
    source = saved.extractfile(name)
    assert source is not None
    return source.read()


@pytest.fixture(scope="module")
def pinned(sandbox_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The product's image, as the engine pulled it by digest."""
    folder = tmp_path_factory.mktemp("registry")
    archive = folder / "saved.tar"
    client = APIClient(base_url=find_engine(Settings.load()).url, version="auto")
    try:
        with archive.open("wb") as out:
            for chunk in client.get_image(sandbox_image):
                out.write(chunk)
        registry = Registry(folder, archive)
        archive.unlink()
        thread = threading.Thread(target=registry.server.serve_forever)
        thread.start()
        try:
            said = list(client.pull(registry.name, stream=True, decode=True))
            assert not any("error" in event for event in said), said
        finally:
            registry.server.shutdown()
            thread.join()
            registry.server.server_close()
        yield registry.name
        # Its name alone: it is the same image.
        client.remove_image(registry.name)
    finally:
        client.close()


@pytest.fixture
async def warm_lab(sandbox_image: str, no_container_is_left: None) -> AsyncIterator[Lab]:
    sandbox = make_sandbox(Settings.load().model_copy(update={"warm_containers": 1}), SystemClock())
    lab = Lab(sandbox, sandbox_image)
    yield lab
    await sandbox.pool.close()
    await sandbox.settle()
    assert await sandbox.owned_containers(lab.store_id) == []
    await sandbox.close()


async def test_an_agents_image_can_be_named_by_digest(lab: Lab, pinned: str) -> None:
    assert await has_image(lab.engine, pinned)
    ran = await lab.run("print('pinned')", image=pinned)
    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"pinned\n")
    with_tag = pinned.replace("@", ":v1@")
    ran = await lab.run(command=("echo", "any program"), image=with_tag)
    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"any program\n")


async def test_an_agents_image_can_be_named_by_id(lab: Lab) -> None:
    image_id = str((await lab.engine.call(APIClient.inspect_image, lab.image))["Id"])
    assert image_id.startswith("sha256:")
    ran = await lab.run("print('by id')", image=image_id)
    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"by id\n")


async def test_containers_of_an_image_by_digest_can_wait(warm_lab: Lab, pinned: str) -> None:
    spec = replace(warm_lab.spec(image=pinned), owner="me")
    pool = warm_lab.sandbox.pool
    await warm_lab.sandbox.keep_warm(warm_lab.store_id, "me", {spec.shape: 1}, now=datetime.now(UTC))

    async def is_there() -> bool:
        return pool.count(spec.shape) == 1

    await wait_until(is_there, what="a container that waits")
    async with warm_lab.sandbox.open(spec) as session:
        assert session.origin == "warm"
        assert (await warm_lab.inspect(session.container_id))["Config"]["Image"] == pinned


async def test_the_socket_proxy_lets_digests_and_ids_through(
    pinned: str, sandbox_image: str, no_container_is_left: None
) -> None:
    socket = Path(urlsplit(find_engine(Settings.load()).url).path)
    async with SocketProxy(socket).listening("tcp://127.0.0.1:0") as url:
        sandbox = make_sandbox(Settings(docker_host=url), SystemClock())
        lab = Lab(sandbox, sandbox_image)
        try:
            image_id = str((await lab.engine.call(APIClient.inspect_image, pinned))["Id"])
            for name in (pinned, image_id):
                ran = await lab.run("print('through')", image=name)
                assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"through\n"), name
            await sandbox.settle()
        finally:
            await sandbox.close()


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (f"127.0.0.1:1/{REPOSITORY}@sha256:{'ab' * 32}", "docker pull"),
        (f"sha256:{'ab' * 32}", "docker load"),
    ],
)
async def test_a_digest_that_the_engine_does_not_have_is_said_to_be_missing(
    lab: Lab, image: str, remedy: str
) -> None:
    with pytest.raises(ImageMissingError, match=rf"does not have the image '{image}'; run: {remedy}"):
        await lab.run("print()", image=image)
