"""The engine itself fails under a run. On a second engine of the tests' own, since others use the first."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic

import psutil
import pytest
from docker import APIClient
from tests.sandboxes import Lab

from harness.errors import EngineUnavailableError
from harness.models import Reason
from harness.ports import SandboxJob
from harness.recovery import sweep
from harness.sandbox import docker as docker_module
from harness.sandbox import engine as engine_module
from harness.sandbox import session as session_module
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.engine import Engine
from harness.sandbox.images import SandboxImages
from harness.sandbox.locate import EngineAddress
from harness.testing import MemoryStore

pytestmark = [
    # The Docker SDK leaves a socket to the garbage collector when it can't connect.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.timeout(150),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("dockerd") is None,
        reason="only root can start an engine of its own",
    ),
]

STARTED = "print('started')\nimport time\ntime.sleep(3600)\n"


class OwnEngine:
    """A dockerd with everything in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = EngineAddress(f"unix://{folder}/docker.sock")
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self._process is not None:
            if not self._is_ending:
                return
            self._process.wait(30)
            self._forget_the_dead()
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # --bridge=none deletes the bridge docker0, whosever it is: in a network of its own it finds none.
                    "unshare",
                    "--net",
                    "dockerd",
                    f"--host={self.address.url}",
                    f"--data-root={self.folder}/data",
                    f"--exec-root={self.folder}/exec",
                    f"--pidfile={self.folder}/pid",
                    "--bridge=none",
                    "--iptables=false",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._is_ending = False
        asyncio.run(self._await_answer())

    def _forget_the_dead(self) -> None:
        """Do what a restart of the machine does: a dockerd trusts these files while their process ids exist at all."""
        file = self.folder / "exec" / "containerd" / "containerd.pid"
        if file.exists():
            with contextlib.suppress(psutil.NoSuchProcess):
                containerd = psutil.Process(int(file.read_text()))
                if str(self.folder) in self._arguments(containerd):
                    containerd.kill()
            file.unlink()
        (self.folder / "pid").unlink(missing_ok=True)

    async def _await_answer(self) -> None:
        assert self._process is not None
        deadline = monotonic() + 60
        while True:
            engine = Engine(self.address)
            try:
                await engine.call(APIClient.ping)
            except EngineUnavailableError:
                log = (self.folder / "log").read_text()
                assert self._process.poll() is None, log
                assert monotonic() < deadline, log
                await asyncio.sleep(0.1)
            else:
                return
            finally:
                await engine.close()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._is_ending |= number in (signal.SIGTERM, signal.SIGKILL)
        self._process.send_signal(number)

    def end(self) -> None:
        """End it and whatever it started, and undo its mounts."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        # containerd and its shims outlive an engine that was killed; all have the folder among their arguments.
        left = [process for process in psutil.process_iter() if str(self.folder) in self._arguments(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        mounts = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(str(self.folder))), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=True)

    @staticmethod
    def _arguments(process: psutil.Process) -> str:
        try:
            return " ".join(process.cmdline())
        except psutil.Error:
            return ""


@pytest.fixture(scope="module")
def own_engine(sandbox_image: str) -> Iterator[OwnEngine]:
    """An engine that has the sandbox image. Its folder's path is short: a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="harness-engine-"))
    own = OwnEngine(folder)
    try:
        own.start()
        asyncio.run(_copy_image(sandbox_image, own.address))
        yield own
    finally:
        own.end()
        shutil.rmtree(folder)


async def _copy_image(image: str, target: EngineAddress) -> None:
    from harness.clock import SystemClock
    from harness.settings import Settings
    from harness.wiring import make_sandbox

    first, second = make_sandbox(Settings.load(), SystemClock()), Engine(target)
    try:
        archive = await first.engine.call(APIClient.get_image, image, 1 << 20)
        await second.call(lambda client: list(client.load_image(archive)))
    finally:
        await first.close()
        await second.close()


@pytest.fixture
async def own_lab(own_engine: OwnEngine, sandbox_image: str) -> AsyncIterator[Lab]:
    """Runs jobs on the own engine, which runs at the beginning, and removes what is left at the end."""
    await asyncio.to_thread(own_engine.start)
    engine = Engine(own_engine.address)
    sandbox = DockerSandbox(engine, SandboxImages(engine, default=sandbox_image))
    lab = Lab(sandbox, sandbox_image)
    yield lab
    await asyncio.to_thread(own_engine.start)
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
    await asyncio.to_thread(own_engine.start)
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
    assert own_engine._process is not None
    await asyncio.to_thread(own_engine._process.wait, 30)

    with pytest.raises(EngineUnavailableError, match=r"docker\.sock does not answer"):
        await own_lab.run("print('never')")


async def test_an_engine_that_hangs_delays_the_end_by_a_bound(
    own_engine: OwnEngine, own_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "KILL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(engine_module, "CONTROL_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(docker_module, "REMOVE_TRIES", 2)
    job = SandboxJob(context={}, task={}, files={"main.py": STARTED})
    spoke = asyncio.Event()

    async def record(reason: Reason, message: str) -> None:
        own_engine.signal(signal.SIGSTOP)

    async def run() -> Reason:
        async with own_lab.sandbox.open(own_lab.spec(timeout_seconds=1, grace_seconds=0)) as session:
            result = await session.run(job, sink=lambda stream, data: spoke.set(), before_stop=record)
        return result.reason

    began = monotonic()
    try:
        assert await run() is Reason.TIMEOUT
    finally:
        own_engine.signal(signal.SIGCONT)

    assert spoke.is_set()
    assert monotonic() - began < 40
