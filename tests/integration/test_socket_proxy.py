"""The socket proxy before the real engine: the product works through it, and a client of the engine can do nothing else."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from docker import APIClient
from tests.sandboxes import LIMITS, Lab, wait_until

from harness.clock import SystemClock
from harness.config import MIB
from harness.egress import PROXY_ENVIRONMENT
from harness.errors import EngineUnavailableError
from harness.models import Reason
from harness.ports import SandboxLabels, SandboxSpec
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.engine import Engine, EngineRefusedError
from harness.sandbox.hostconfig import container_labels, container_name, creation_body, relay_body, relay_name
from harness.sandbox.inspection import container_limits, engine_facts, has_image, ping
from harness.sandbox.locate import find_engine
from harness.sandbox.proxy.server import CHUNK_BYTES, SocketProxy
from harness.sandbox.session import DockerSession
from harness.settings import Settings
from harness.wiring import make_sandbox


def engine_socket() -> Path:
    return Path(urlsplit(find_engine(Settings.load()).url).path)


@pytest.fixture(params=["unix", "tcp"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Where a proxy listens."""
    listen = "tcp://127.0.0.1:0" if request.param == "tcp" else f"unix://{tmp_path}/p.sock"
    async with SocketProxy(engine_socket()).listening(listen) as shown:
        yield shown


@pytest.fixture
async def through(url: str) -> AsyncIterator[DockerSandbox]:
    """The product's sandbox, with a proxy for an engine."""
    sandbox = make_sandbox(Settings(docker_host=url), SystemClock())
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def proxied(
    through: DockerSandbox, sandbox_image: str, no_container_is_left: None
) -> AsyncIterator[Lab]:
    lab = Lab(through, sandbox_image)
    yield lab
    await through.settle()
    assert await through.owned_containers(lab.store_id) == []


@pytest.fixture
async def foreign(lab: Lab) -> AsyncIterator[str]:
    """A container that is not the product's, made without the proxy; its id."""

    def create(client: APIClient) -> str:
        return str(
            client.create_container(
                lab.image, name=f"other-{secrets.token_hex(8)}", entrypoint=["sleep", "60"]
            )["Id"]
        )

    container_id = await lab.engine.call(create)
    yield container_id
    await lab.engine.call(APIClient.remove_container, container_id, force=True)


async def exchange(url: str, data: bytes) -> bytes:
    """Send bytes; return all that comes back."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(parts.path)
    else:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        await writer.wait_closed()


async def call(url: str, method: str, target: str, body: Any = None, head: str = "") -> tuple[int, str]:
    """Make one call as a bare client would; return the status and the error's message."""
    data = b"" if body is None else json.dumps(body).encode()
    request = (
        f"{method} {target} HTTP/1.1\r\nHost: docker\r\nContent-Length: {len(data)}\r\n{head}\r\n".encode()
    )
    answer = await exchange(url, request + data)
    first, _, rest = answer.partition(b"\r\n\r\n")
    status = int(first.split(b" ")[1])
    return status, json.loads(rest)["message"] if status >= 400 else ""


async def test_a_run_completes_with_its_output_and_its_state(proxied: Lab) -> None:
    ran = await proxied.run(
        "import sys, handoff\nprint('out')\nprint('err', file=sys.stderr)\nhandoff.save({'n': context['n'] + 1}, 's')",
        context={"n": 1},
    )

    assert (ran.reason, ran.stdout, ran.stderr) == (Reason.COMPLETED, b"out\n", b"err\n")
    assert ran.result.state == {"n": 2}


async def test_a_program_in_another_language_sees_the_end_of_its_input(proxied: Lab) -> None:
    ran = await proxied.run(
        command=("sh", "-c", "cat; echo $WHO"), environment={"WHO": "me"}, context={"a": 1}
    )

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b'{"a": 1}\nme\n')


async def test_much_output_comes_through_whole(proxied: Lab) -> None:
    ran = await proxied.run(
        "import sys\nfor n in range(200_000):\n    print(n)", output_bytes=16 * 1024 * 1024
    )

    assert ran.reason is Reason.COMPLETED
    assert ran.stdout == b"".join(b"%d\n" % n for n in range(200_000))


async def test_the_last_words_of_a_program_that_leaves_its_input_unread_come_through(proxied: Lab) -> None:
    for _ in range(5):
        ran = await proxied.run(command=("sh", "-c", "echo done"), context={"x": "y" * 4 * MIB})

        assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"done\n")


async def test_a_run_past_its_time_is_stopped_and_one_that_resists_is_killed(proxied: Lab) -> None:
    stubborn = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")

    ran = await proxied.run("import time\ntime.sleep(60)", timeout_seconds=0.5)
    resisted = await proxied.run(command=stubborn, timeout_seconds=0.5, grace_seconds=0.2)

    assert [ran.reason, resisted.reason] == [Reason.TIMEOUT, Reason.TIMEOUT]


async def test_a_running_container_is_measured_listed_and_inspected_then_swept(proxied: Lab) -> None:
    seen: dict[str, Any] = {}

    async def look(session: DockerSession) -> None:
        seen["usage"] = await proxied.sandbox.container_usage(session.container_id)
        seen["owned"] = [
            found.container_id for found in await proxied.sandbox.owned_containers(proxied.store_id)
        ]
        seen["limits"] = await container_limits(proxied.engine, session.container_id)
        seen["id"] = session.container_id
        await proxied.sandbox.remove_container(session.container_id)

    ran = await proxied.run("import time\nprint('up', flush=True)\ntime.sleep(60)", during=look)

    assert ran.reason in {Reason.RESULT_LOST, Reason.SANDBOX_ERROR}
    assert seen["usage"]["num_processes"] >= 1
    assert seen["owned"] == [seen["id"]]
    assert seen["limits"].memory_bytes == LIMITS.memory_bytes


async def test_a_container_ends_when_its_runner_is_gone(proxied: Lab, lab: Lab) -> None:
    spec = proxied.spec()
    async with proxied.sandbox.open(spec) as session:
        session._writer.transport.abort()

        async def has_ended() -> bool:
            return not (await lab.inspect(session.container_id))["State"]["Running"]

        await wait_until(has_ended, what="the end of the container")


async def test_the_engine_and_its_images_can_be_asked_about(
    through: DockerSandbox, sandbox_image: str
) -> None:
    await ping(through.engine)

    assert (await engine_facts(through.engine)).memory_limit
    assert await has_image(through.engine, sandbox_image)
    assert not await has_image(through.engine, "no-such/image:1")
    assert await through.images.current() is not None


async def test_a_container_that_is_not_there_is_as_absent_as_without_the_proxy(
    through: DockerSandbox,
) -> None:
    with pytest.raises(EngineRefusedError) as caught:
        await through.engine.start_container("0" * 64)

    assert caught.value.status == 404
    await through.remove_container("0" * 64)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/json"),
        ("POST", "/start"),
        ("POST", "/wait?condition=not-running"),
        ("POST", "/kill?signal=SIGKILL"),
        ("GET", "/stats?stream=False&one-shot=True"),
        ("DELETE", "?v=True&link=False&force=True"),
    ],
)
async def test_a_container_of_somebody_else_is_out_of_reach(
    url: str, foreign: str, lab: Lab, method: str, path: str
) -> None:
    status, message = await call(url, method, f"/v1.41/containers/{foreign}{path}")

    assert (status, "not one of ours" in message) == (403, True)
    assert (await lab.inspect(foreign))["State"]["Status"] == "created"


async def test_no_stream_to_a_container_of_somebody_else(url: str, foreign: str) -> None:
    target = f"/v1.41/containers/{foreign}/attach?stream=1&stdin=1&stdout=1&stderr=1"

    status, message = await call(url, "POST", target, head="Connection: Upgrade\r\nUpgrade: tcp\r\n")

    assert (status, "not one of ours" in message) == (403, True)


async def test_containers_of_somebody_else_are_not_listed(through: DockerSandbox, foreign: str) -> None:
    with pytest.raises(EngineRefusedError, match="filters"):
        await through.engine.call(APIClient.containers, all=True)
    with pytest.raises(EngineRefusedError, match="label"):
        await through.engine.call(APIClient.containers, all=True, filters={"label": "x"})


@pytest.mark.parametrize(
    ("dangerous", "named"),
    [
        ({"Binds": ["/:/host"]}, "Binds"),
        ({"binds": ["/:/host"]}, "binds"),
        ({"BINDS": ["/:/host"]}, "BINDS"),
        ({"Privileged": True}, "Privileged"),
        ({"PidMode": "host"}, "PidMode"),
        ({"CapAdd": ["SYS_ADMIN"]}, "CapAdd"),
        ({"Devices": [{"PathOnHost": "/dev/sda"}]}, "Devices"),
        ({"Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]}, "Mounts"),
        ({"NetworkMode": "host"}, "NetworkMode"),
        ({"Memory": 0, "MemorySwap": 0}, "Memory"),
    ],
)
async def test_a_dangerous_container_is_refused_and_never_made(
    url: str, lab: Lab, dangerous: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels = SandboxLabels(lab.store_id, 1, 1)
    sent = creation_body(lab.image, SandboxSpec(LIMITS, labels).shape, labels, "1.41")
    sent["HostConfig"] |= dangerous

    status, message = await call(url, "POST", f"/v1.41/containers/create?name={container_name(labels)}", sent)

    assert (status, named in message) == (403, True)
    assert await lab.sandbox.owned_containers(lab.store_id) == []
    assert [record.action for record in caplog.records if hasattr(record, "action")] == ["call_refused"]


async def test_keys_that_are_there_twice_are_refused_though_the_last_ones_are_harmless(
    url: str, lab: Lab
) -> None:
    labels = SandboxLabels(lab.store_id, 1, 1)
    text = json.dumps(creation_body(lab.image, SandboxSpec(LIMITS, labels).shape, labels, "1.41"))
    twice = '{"HostConfig": {"Privileged": true}, ' + text[1:]
    head = f"POST /v1.41/containers/create?name={container_name(labels)} HTTP/1.1\r\nContent-Length: {len(twice)}\r\n\r\n"

    answer = await exchange(url, (head + twice).encode())

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"'HostConfig' is there twice" in answer


async def test_a_run_has_its_relay_through_the_proxy(proxied: Lab) -> None:
    code = "import urllib.request as u\ntry: u.urlopen('http://example.com/')\nexcept u.HTTPError as e: print(e.code)"

    ran = await proxied.run(code, env=PROXY_ENVIRONMENT, egress=("other.example:80",))

    assert (ran.stdout, ran.stderr) == (b"403\n", b"")


async def test_a_relay_beside_a_container_that_is_not_ours_is_refused(
    url: str, foreign: str, lab: Lab, proxied: Lab
) -> None:
    labels = SandboxLabels(lab.store_id, 1, 1)
    target = f"/v1.41/containers/create?name={relay_name(labels)}"

    for container, named in ((foreign, "not one of ours"), ("ab" * 32, "not there")):
        body = relay_body(lab.image, labels, container, "1.41")
        status, message = await call(url, "POST", target, body)
        assert (status, named in message) == (403, True)


async def test_a_request_behind_another_one_is_never_made(url: str, foreign: str, lab: Lab) -> None:
    behind = f"DELETE /v1.41/containers/{foreign}?force=True HTTP/1.1\r\nHost: docker\r\n\r\n"

    answer = await exchange(url, f"GET /version HTTP/1.1\r\nHost: docker\r\n\r\n{behind}".encode())

    assert answer.count(b"HTTP/1.1") == 1
    assert (await lab.inspect(foreign))["Id"] == foreign


async def test_a_request_behind_an_attach_that_the_engine_turns_down_is_never_made(
    url: str, proxied: Lab, lab: Lab, foreign: str
) -> None:
    async with proxied.sandbox.open(proxied.spec()) as session:
        gone = session.container_id
        # Known to the proxy from here on, so that the engine is the one to turn the next attach down.
        await proxied.sandbox.remove_container(gone)
        behind = f"DELETE /v1.41/containers/{foreign}?force=True HTTP/1.1\r\nHost: docker\r\n\r\n"
        attach = f"/v1.41/containers/{gone}/attach?stream=1&stdin=1&stdout=1&stderr=1"

        answer = await exchange(
            url,
            f"POST {attach} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n{behind}".encode(),
        )

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert (await lab.inspect(foreign))["Id"] == foreign


async def test_a_client_that_does_not_read_stalls_the_container_and_fills_no_memory(
    sandbox_image: str, no_container_is_left: None
) -> None:
    proxy = SocketProxy(engine_socket())
    async with proxy.listening("tcp://127.0.0.1:0") as url:
        sandbox = make_sandbox(Settings(docker_host=url), SystemClock())
        lab = Lab(sandbox, sandbox_image)
        # Its stream is opened, and never read.
        async with sandbox.open(lab.spec(("yes",))) as session:
            cpu_seconds = [-1.0]

            async def is_stalled() -> bool:
                stats = await sandbox.engine.call(
                    APIClient.stats, session.container_id, stream=False, one_shot=True
                )
                cpu_seconds.append(stats["cpu_stats"]["cpu_usage"]["total_usage"])
                return cpu_seconds[-1] == cpu_seconds[-2]

            await wait_until(is_stalled, what="a container that waits for its reader")
            held = [writer.transport.get_write_buffer_size() for writer in proxy._connections.values()]
            assert max(held) <= 2 * CHUNK_BYTES
        await sandbox.close()


async def test_connections_past_the_bound_are_told_so(tmp_path: Path) -> None:
    async with SocketProxy(engine_socket(), max_connections=1).listening(f"unix://{tmp_path}/p.sock") as url:
        _, idle = await asyncio.open_unix_connection(str(tmp_path / "p.sock"))
        try:
            assert (await call(url, "GET", "/version"))[0] == 503
        finally:
            idle.close()
            await idle.wait_closed()

        async def is_free() -> bool:
            return (await call(url, "GET", "/version"))[0] == 200

        await wait_until(is_free, what="a free connection")


async def test_an_engine_that_is_away_is_named(tmp_path: Path) -> None:
    async with SocketProxy(tmp_path / "none.sock").listening("tcp://127.0.0.1:0") as url:
        status, message = await call(url, "GET", "/version")
        engine = Engine(replace(find_engine(Settings(docker_host=url))))
        try:
            with pytest.raises(EngineUnavailableError):
                await ping(engine)
        finally:
            await engine.close()

    assert status == 502
    assert str(tmp_path / "none.sock") in message


async def test_labels_of_another_shape_do_not_make_a_container_ours(url: str, lab: Lab) -> None:
    labels = container_labels(SandboxLabels("", 1, 1))

    def create(client: APIClient) -> str:
        return str(client.create_container(lab.image, labels=labels)["Id"])

    container_id = await lab.engine.call(create)
    try:
        assert (await call(url, "POST", f"/v1.41/containers/{container_id}/start"))[0] == 403
    finally:
        await lab.engine.call(APIClient.remove_container, container_id, force=True)
