"""The engine itself fails under a run. On a second engine of the tests' own, since others use the first."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest
from tests.engines import OwnEngine, can_start_engines
from tests.sandboxes import Lab

from harness.errors import EngineUnavailableError
from harness.models import Reason
from harness.ports import SandboxJob
from harness.recovery import sweep
from harness.sandbox import containers as containers_module
from harness.sandbox import engine as engine_module
from harness.sandbox import session as session_module
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.engine import Engine
from harness.sandbox.images import SandboxImages
from harness.testing import MemoryStore

pytestmark = [
    # The Docker SDK leaves a socket to the garbage collector when it can't connect.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.timeout(150),
    pytest.mark.skipif(not can_start_engines(), reason="only root can start an engine of its own"),
]

STARTED = "print('started')\nimport time\ntime.sleep(3600)\n"


@pytest.fixture(scope="module")
def own_engine(sandbox_image: str) -> Iterator[OwnEngine]:
    """An engine that has the sandbox image. Its folder's path is short: a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="harness-engine-"))
    own = OwnEngine(folder)
    try:
        asyncio.run(_start_with_image(own, sandbox_image))
        yield own
    finally:
        own.end()
        shutil.rmtree(folder)


async def _start_with_image(own: OwnEngine, image: str) -> None:
    await own.start()
    await own.load_image(image)


@pytest.fixture
async def own_lab(own_engine: OwnEngine, sandbox_image: str) -> AsyncIterator[Lab]:
    """Runs jobs on the own engine, which runs at the beginning, and removes what is left at the end."""
    await own_engine.start()
    engine = Engine(own_engine.address)
    sandbox = DockerSandbox(engine, SandboxImages(engine, default=sandbox_image))
    lab = Lab(sandbox, sandbox_image)
    yield lab
    await own_engine.start()
    for container in await sandbox.owned_containers(lab.store_id):
        await sandbox.remove_container(container.container_id)
    await sandbox.close()
    # While the warning of the sockets that the SDK forgot is still ignored.
    gc.collect()


Stop = Callable[[OwnEngine], Awaitable[None]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("supervised", [True, False])
async def test_an_engine_that_goes_away_under_a_run_is_a_sandbox_error(
    own_engine: OwnEngine, own_lab: Lab, number: signal.Signals, supervised: bool
) -> None:
    async def stop(_session: object) -> None:
        own_engine.signal(number)

    # An engine that ends in good order sends its containers SIGTERM.
    plain = ("sh", "-c", "trap 'exit 9' TERM; echo started; while :; do sleep 0.1; done")
    command = None if supervised else plain
    async with asyncio.timeout(60):
        ran = await own_lab.run(STARTED, command=command, during=stop)

    if not supervised and number == signal.SIGTERM:
        # The engine may still tell the exit code, or be gone before it is asked.
        assert ran.reason in (Reason.SANDBOX_ERROR, Reason.EXIT_NONZERO)
    else:
        assert ran.reason is Reason.SANDBOX_ERROR, ran
    assert ran.error
    assert ran.stdout == b"started\n"


async def test_what_a_dead_engine_left_is_swept_when_it_is_back(own_engine: OwnEngine, own_lab: Lab) -> None:
    async def kill(_session: object) -> None:
        own_engine.signal(signal.SIGKILL)

    async with asyncio.timeout(60):
        await own_lab.run(STARTED, during=kill)
    await own_engine.start()
    store = MemoryStore()
    await store.open()
    store._file.store_id = own_lab.store_id

    assert len(await own_lab.sandbox.owned_containers(own_lab.store_id)) == 1
    report = await sweep(store, own_lab.sandbox)
    await store.close()

    assert report.removed_containers == 1
    assert await own_lab.sandbox.owned_containers(own_lab.store_id) == []
    assert (await own_lab.run("print('works')")).stdout == b"works\n"


async def test_an_engine_that_is_not_there_is_named_with_its_address(
    own_engine: OwnEngine, own_lab: Lab
) -> None:
    own_engine.signal(signal.SIGTERM)
    await own_engine.wait()

    with pytest.raises(EngineUnavailableError, match=r"docker\.sock does not answer"):
        await own_lab.run("print('never')")


async def test_an_engine_that_hangs_delays_the_end_by_a_bound(
    own_engine: OwnEngine, own_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "KILL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(engine_module, "CONTROL_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(containers_module, "REMOVE_TRIES", 2)
    job = SandboxJob(context={}, task={}, files={"main.py": STARTED})
    spoke = asyncio.Event()

    async def record(reason: Reason, message: str) -> None:
        own_engine.signal(signal.SIGSTOP)

    async def run() -> Reason:
        async with own_lab.sandbox.open(own_lab.spec(timeout_seconds=4, grace_seconds=0)) as session:
            result = await session.run(job, sink=lambda stream, data: spoke.set(), before_stop=record)
        return result.reason

    began = monotonic()
    try:
        assert await run() is Reason.TIMEOUT
    finally:
        own_engine.signal(signal.SIGCONT)

    assert spoke.is_set()
    assert monotonic() - began < 40
