"""``harness images``: what sandboxes are made from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import text
from harness.cli.options import JsonOption, group
from harness.cli.render import note, print_json, print_table, say
from harness.cli.session import note_that_it_is_local, run_async

if TYPE_CHECKING:
    from harness.sandbox.images import ImageInfo, SandboxImages

app = group("Build and list the images of sandboxes.")


@app.command("build")
def build(
    *,
    force: Annotated[bool, typer.Option("--force", help="Build even if the image is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the image that Python agents run in, unless it is there.

    Its base is python:3.12-slim where a registry gives it, else a small Debian made from packages. What is being done is
    printed to standard error, the image's name to standard output.

    \b
    Examples:
      harness images build
      harness images build --force
    """

    async def work() -> ImageInfo:
        async with _images() as images:
            return await images.build(note, force=force)

    image = run_async(work)
    if as_json:
        print_json(asdict(image))
        return
    note(f"ready, {text.size_text(image.size_bytes)} on the base {image.base}")
    say(image.tag)


@app.command("list")
def list_(*, as_json: JsonOption = False) -> None:
    """List the product's images on the engine, this release's first.

    \b
    Example:
      harness images list
    """

    async def work() -> list[ImageInfo]:
        async with _images() as images:
            return await images.list()

    images = run_async(work)
    if as_json:
        print_json({"items": [asdict(image) for image in images]})
        return
    rows = [
        [image.tag, "yes" if image.is_current else "no", text.size_text(image.size_bytes), image.base]
        for image in images
    ]
    print_table(["IMAGE", "CURRENT", "SIZE", "BASE"], rows, give_way="BASE")
    if not any(image.is_current for image in images):
        note("this release's image is not built yet; run: harness images build")


@asynccontextmanager
async def _images() -> AsyncIterator[SandboxImages]:
    from harness.clock import SystemClock
    from harness.sandbox.inspection import ping
    from harness.settings import get_settings
    from harness.wiring import make_sandbox

    note_that_it_is_local()
    sandbox = make_sandbox(get_settings(), SystemClock())
    try:
        await ping(sandbox.engine)
        yield sandbox.images
    finally:
        await sandbox.close()
