"""`harness socket-proxy` as a process, and what tells that a `harness runner` is alive."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from tests.sandboxes import wait_until
from tests.services import Site, site

from harness.models import NewTask, Reason, TaskStatus
from harness.sandbox.locate import find_engine
from harness.settings import Settings

__all__ = ["site"]


def engine_socket() -> str:
    return urlsplit(find_engine(Settings.load()).url).path


async def test_a_server_works_through_a_proxy_that_is_a_process_of_its_own(site: Site) -> None:
    socket = site.folder / "p.sock"
    address = f"unix://{socket}"
    proxy = site.start("socket-proxy", "--listen", address, "--engine-socket", engine_socket())
    assert await proxy.url() == address
    runner = site.start("runner", HARNESS_DOCKER_HOST=address)
    await runner.until("started")
    agent = await site.create("print('through')")

    given = await site.store.create_task(NewTask(agent_id=agent.id))
    task = await site.until_status(given.id, TaskStatus.COMPLETED)

    assert (task.reason, task.result) == (Reason.COMPLETED, "through")
    assert proxy.events("call_refused") == []
    assert await runner.stop() == 0
    assert await proxy.stop() == 0
    assert not socket.exists()


async def test_a_socket_that_a_killed_proxy_left_is_taken_over_and_that_of_a_living_one_is_not(
    site: Site,
) -> None:
    arguments = (
        "socket-proxy",
        "--listen",
        f"unix://{site.folder}/p.sock",
        "--engine-socket",
        engine_socket(),
    )
    killed = site.start(*arguments)
    await killed.url()
    killed.process.kill()
    killed.process.wait()

    proxy = site.start(*arguments)
    await proxy.url()
    late = site.start(*arguments)

    assert await late.ended() == 1
    assert "in use" in late.events("failed")[0]["message"]
    assert await proxy.stop() == 0


async def test_an_address_that_can_not_be_listened_at_ends_a_proxy_with_its_reason(site: Site) -> None:
    wrong = site.start("socket-proxy", "--listen", "http://localhost")
    missing = site.start("socket-proxy", "--listen", f"unix://{site.folder}/none/p.sock")

    assert [await wrong.ended(), await missing.ended()] == [2, 1]
    assert "tcp://ADDRESS:PORT or unix:///PATH" in wrong.events("failed")[0]["message"]
    assert "/none/p.sock" in missing.events("failed")[0]["message"]


async def test_a_runner_writes_its_heartbeat_until_it_stops(site: Site) -> None:
    file = site.folder / "alive"
    runner = site.start("runner", "--heartbeat-file", str(file))
    await runner.until("started")
    await wait_until(lambda: asyncio.to_thread(file.exists), what="a heartbeat")
    first = file.stat().st_mtime_ns

    async def is_newer() -> bool:
        return file.stat().st_mtime_ns > first

    await wait_until(is_newer, what="a second heartbeat")
    assert await runner.stop() == 0
    assert not file.exists()
