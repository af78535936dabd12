"""Sandbox images: what there is on the engine, and how it comes to be there.

An image is named by a hash of its sources and its base, so it is built once and again only when either changes. The
base is ``python:3.12-slim`` where the engine has it or a registry gives it, else a small Debian made by
``sandbox-images/base/build.sh`` from packages, since a machine without a registry must get its sandbox too.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from docker import APIClient

from harness.errors import ImageBuildError, ImageMissingError, SandboxError
from harness.sandbox.engine import Engine, EngineRefusedError

logger = logging.getLogger(__name__)

REGISTRY_BASE = "python:3.12-slim"
DEBIAN_SUITE = "bookworm"
REPOSITORY = "agent-harness/python"
BASE_REPOSITORY = "agent-harness/base"
LABEL_BASE = "io.agent-harness.base"
#: Bound on one try to pull the registry's base, in seconds; past it the Debian base is built.
PULL_TIMEOUT_SECONDS = 120
#: Bound on building the Debian base, in seconds.
BASE_TIMEOUT_SECONDS = 900

#: Told what is going on, a line at a time.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A sandbox image of ours on the engine."""

    tag: str
    image_id: str
    #: What it was built on.
    base: str
    size_bytes: int
    #: Whether this release's Python agents run on it.
    is_current: bool


def image_sources() -> Path:
    """Return the folder with the images' sources: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "images"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "sandbox-images"


def is_fixed(image: str) -> bool:
    """Return whether an image's name stands for one image for ever: a digest, an id, or the hash in ours."""
    return "@sha256:" in image or is_image_id(image) or image.startswith(f"{REPOSITORY}:")


def is_image_id(image: str) -> bool:
    """Return whether that is no name but an engine's own id of an image, which no registry knows."""
    return re.fullmatch("sha256:[0-9a-f]{64}", image) is not None


class SandboxImages:
    """The sandbox images of one engine."""

    def __init__(self, engine: Engine, *, default: str | None = None) -> None:
        """Work on `engine`.

        Args:
            engine: Where images are built and looked for.
            default: An image to use for Python agents instead of the product's own; it is never built here.
        """
        self._engine = engine
        self._default = default
        self._ready: str | None = None
        self._building = asyncio.Lock()

    async def ensure_default(self, progress: Progress | None = None) -> str:
        """Return the image of Python agents, building it if it is missing. Looked up once per process."""
        if self._default is not None:
            return self._default
        async with self._building:
            if self._ready is None:
                current = await self.current()
                self._ready = current.tag if current else (await self._build(progress or logger.info)).tag
            return self._ready

    async def current(self) -> ImageInfo | None:
        """Return the image that this release's sources make, if the engine has it."""
        return next((image for image in await self.list() if image.is_current), None)

    async def list(self) -> list[ImageInfo]:
        """Return all our Python images, the newest first."""
        wanted = {_tag(base) for base in (REGISTRY_BASE, _debian_tag())}
        found: list[ImageInfo] = []
        for entry in await self._engine.call(APIClient.images, name=REPOSITORY):
            base = (entry.get("Labels") or {}).get(LABEL_BASE, "unknown")
            found.extend(
                ImageInfo(tag, entry["Id"], base, entry["Size"], tag in wanted)
                for tag in entry.get("RepoTags") or []
                if tag.startswith(REPOSITORY + ":")
            )
        # Where both bases were used over time, the registry's is preferred: it is what other machines run.
        return sorted(found, key=lambda image: (image.is_current, image.base == REGISTRY_BASE), reverse=True)

    async def build(self, progress: Progress, *, force: bool = False) -> ImageInfo:
        """Make sure this release's image exists.

        Args:
            progress: Told, a line at a time, what is being done, and which base is used.
            force: Build even if it exists.

        Raises:
            ImageBuildError: With what failed and what can be done.
        """
        async with self._building:
            current = None if force else await self.current()
            image = current or await self._build(progress)
            self._ready = image.tag
            return image

    async def _build(self, progress: Progress) -> ImageInfo:
        base = await self._base(progress)
        try:
            await self._build_on(base, progress)
        except ImageBuildError as error:
            if base != REGISTRY_BASE:
                raise
            progress(error.message)
            await self._build_on(await self._debian_base(progress), progress)
        built = await self.current()
        if built is None:
            raise ImageBuildError(f"the image was built, yet is not listed; run: docker images {REPOSITORY}")
        return built

    async def _build_on(self, base: str, progress: Progress) -> None:
        tag = _tag(base)
        progress(f"building {tag} on {base}")
        folder = image_sources() / "python"
        context = _archive((path.name, path.read_bytes()) for path in _source_files(folder))

        def run_build(client: APIClient) -> None:
            events = client.build(
                fileobj=context,
                custom_context=True,
                encoding="gzip",
                tag=tag,
                buildargs={"BASE": base},
                labels={LABEL_BASE: base},
                rm=True,
                forcerm=True,
                decode=True,
            )
            for event in events:
                if "error" in event:
                    raise ImageBuildError(f"building {tag} on {base} failed: {event['error']}")

        await self._engine.call(run_build)

    async def _base(self, progress: Progress) -> str:
        if await self._has(REGISTRY_BASE):
            return REGISTRY_BASE
        progress(f"pulling {REGISTRY_BASE}")
        try:
            async with asyncio.timeout(PULL_TIMEOUT_SECONDS):
                await self._engine.call(_pull, REGISTRY_BASE)
        except TimeoutError:
            progress(f"no {REGISTRY_BASE} within {PULL_TIMEOUT_SECONDS} s")
        except SandboxError as error:
            progress(f"no registry gives {REGISTRY_BASE}: {_first_line(error.message)}")
        else:
            return REGISTRY_BASE
        return await self._debian_base(progress)

    async def _debian_base(self, progress: Progress) -> str:
        tag = _debian_tag()
        if not await self._has(tag):
            await self._make_debian_base(tag, progress)
        return tag

    async def _has(self, image: str) -> bool:
        try:
            await self._engine.call(APIClient.inspect_image, image)
        except (ImageMissingError, EngineRefusedError):
            return False
        return True

    async def _make_debian_base(self, tag: str, progress: Progress) -> None:
        progress(f"making the base {tag} from Debian packages (about half a minute)")
        script = image_sources() / "base" / "build.sh"
        with tempfile.TemporaryDirectory(prefix="harness-base-") as folder:
            archive = Path(folder) / "rootfs.tar"
            await _run_script(script, archive)
            repository, _, version = tag.partition(":")
            await self._engine.call(
                APIClient.import_image_from_file, str(archive), repository=repository, tag=version
            )


async def _run_script(script: Path, archive: Path) -> None:
    with archive.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            "sh",
            str(script),
            DEBIAN_SUITE,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.PIPE,
        )
    try:
        async with asyncio.timeout(BASE_TIMEOUT_SECONDS):
            _, errors = await process.communicate()
    except BaseException as error:
        process.terminate()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise ImageBuildError(f"{script} took longer than {BASE_TIMEOUT_SECONDS} s") from error
        raise
    if process.returncode != 0:
        tail = " | ".join(errors.decode(errors="replace").strip().splitlines()[-3:])
        raise ImageBuildError(
            f"no base image: no registry gives {REGISTRY_BASE}, and {script} failed ({tail}). Load one by hand "
            f"(docker load) under the name {REGISTRY_BASE}, or set HARNESS_SANDBOX_IMAGE to an image derived from ours"
        )


def _pull(client: APIClient, image: str) -> None:
    for event in client.pull(image, stream=True, decode=True):
        if "error" in event:
            raise EngineRefusedError(str(event["error"]), 0)


def _source_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _tag(base: str) -> str:
    return f"{REPOSITORY}:{_digest(_source_files(image_sources() / 'python'), base)}"


def _debian_tag() -> str:
    return (
        f"{BASE_REPOSITORY}:{DEBIAN_SUITE}-{_digest(_source_files(image_sources() / 'base'), DEBIAN_SUITE)}"
    )


def _digest(files: Iterable[Path], base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _archive(files: Iterable[tuple[str, bytes]]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no answer"
