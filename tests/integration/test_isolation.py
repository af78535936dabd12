"""Runtime and AppArmor profile of the operator's choice, on the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from docker import APIClient
from tests.sandboxes import Lab, wait_until

from harness.clock import SystemClock
from harness.errors import SandboxError
from harness.models import Reason
from harness.ports import WarmLabels
from harness.sandbox.hostconfig import Isolation
from harness.sandbox.inspection import container_limits, engine_facts
from harness.sandbox.locate import find_engine
from harness.sandbox.proxy.server import SocketProxy
from harness.sandbox.session import DockerSession
from harness.settings import Settings
from harness.wiring import make_sandbox

#: runc by another name than the default one, so that it shows which was asked for.
RUNC_BY_SHIM = "io.containerd.runc.v2"
MISSING = "no-such-runtime"

pytestmark = pytest.mark.usefixtures("no_container_is_left")


@asynccontextmanager
async def lab_with(image: str, **changes: object) -> AsyncIterator[Lab]:
    """A lab whose sandbox has settings of the test's; none of its containers outlives it."""
    lab = Lab(make_sandbox(Settings.load().model_copy(update=changes), SystemClock()), image)
    try:
        yield lab
        await lab.sandbox.pool.close()
        await lab.sandbox.settle()
        assert await lab.sandbox.owned_containers(lab.store_id) == []
    finally:
        await lab.sandbox.close()


async def test_a_run_has_the_runtime_that_is_set(sandbox_image: str) -> None:
    seen: list[str] = []

    async def look(session: DockerSession) -> None:
        seen.append((await container_limits(lab.engine, session.container_id)).runtime)

    async with lab_with(sandbox_image, sandbox_runtime=RUNC_BY_SHIM) as lab:
        ran = await lab.run("import time\nprint('hello', flush=True)\ntime.sleep(0.5)", during=look)

    assert (ran.reason, ran.stdout, seen) == (Reason.COMPLETED, b"hello\n", [RUNC_BY_SHIM])


async def test_a_container_that_waits_has_it_too(sandbox_image: str) -> None:
    async with lab_with(sandbox_image, sandbox_runtime=RUNC_BY_SHIM, warm_containers=1) as lab:
        spec = replace(lab.spec(), owner="me")
        await lab.sandbox.keep_warm(lab.store_id, "me", {spec.shape: 1}, now=datetime.now(UTC))

        async def is_there() -> bool:
            return lab.sandbox.pool.count(spec.shape) == 1

        await wait_until(is_there, what="a container that waits")
        (container,) = await lab.sandbox.owned_containers(lab.store_id)
        assert isinstance(container.labels, WarmLabels)
        assert (await container_limits(lab.engine, container.container_id)).runtime == RUNC_BY_SHIM
        async with lab.sandbox.open(spec) as session:
            assert (session.origin, session.container_id) == ("warm", container.container_id)


async def test_a_runtime_that_the_engine_does_not_have_is_said_to_be_missing(sandbox_image: str) -> None:
    async with lab_with(sandbox_image, sandbox_runtime=MISSING) as lab:
        with pytest.raises(
            SandboxError, match=rf"{MISSING}.*HARNESS_SANDBOX_RUNTIME asks for it; harness doctor"
        ):
            await lab.run("print()")


async def test_the_proxy_lets_no_container_through_without_the_runtime_that_it_is_told(
    sandbox_image: str,
) -> None:
    own_socket = Path(urlsplit(find_engine(Settings.load()).url).path)
    async with SocketProxy(own_socket, isolation=Isolation(RUNC_BY_SHIM)).listening(
        "tcp://127.0.0.1:0"
    ) as url:
        async with lab_with(sandbox_image, docker_host=url, sandbox_runtime=RUNC_BY_SHIM) as lab:
            ran = await lab.run("print('through')")
            assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"through\n")
        for runtime in (None, "runc"):
            async with lab_with(sandbox_image, docker_host=url, sandbox_runtime=runtime) as lab:
                with pytest.raises(SandboxError, match=r"refused by the socket proxy: .*Runtime"):
                    await lab.run("print()")


async def test_an_apparmor_profile_is_asked_for(sandbox_image: str) -> None:
    # The engine's own, which is loaded wherever AppArmor is; elsewhere its name is taken and means nothing.
    async with lab_with(sandbox_image, apparmor_profile="docker-default") as lab:
        options = (await engine_facts(lab.engine)).security_options
        has_apparmor = any(option.startswith("name=apparmor") for option in options)
        async with lab.sandbox.open(lab.spec()) as session:
            told = await lab.engine.call(APIClient.inspect_container, session.container_id)
    assert "apparmor=docker-default" in told["HostConfig"]["SecurityOpt"]
    assert told["AppArmorProfile"] == ("docker-default" if has_apparmor else "")
