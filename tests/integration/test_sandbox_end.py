"""What happens between an agent's last byte and the end of its container: who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from docker import APIClient
from tests.sandboxes import Lab, wait_until

from harness.clock import SystemClock
from harness.models import Reason
from harness.ports import OutputStream, SandboxJob, SandboxResult
from harness.recovery import sweep
from harness.sandbox import containers as containers_module
from harness.sandbox.engine import Engine, EngineRefusedError
from harness.sandbox.frames import END_MAGIC
from harness.sandbox.session import DockerSession
from harness.settings import Settings
from harness.testing import MemoryStore
from harness.wiring import make_sandbox


async def _ignore(reason: Reason, message: str) -> None:
    pass


def _job(code: str) -> SandboxJob:
    return SandboxJob(context={}, task={}, files={"main.py": code})


async def _state(lab: Lab, session: DockerSession) -> tuple[str, int]:
    state = (await lab.inspect(session.container_id))["State"]
    return state["Status"], state["ExitCode"]


async def _until_exited(lab: Lab, session: DockerSession) -> int:
    async def has_exited() -> bool:
        return (await _state(lab, session))[0] == "exited"

    await wait_until(has_exited, what="the end of the container")
    return (await _state(lab, session))[1]


@asynccontextmanager
async def _ended(lab: Lab, code: str = "print('done')") -> AsyncIterator[tuple[DockerSession, SandboxResult]]:
    """A session whose job has ended, and its result."""
    async with lab.sandbox.open(lab.spec()) as session:
        yield session, await session.run(_job(code), sink=lambda stream, data: None, before_stop=_ignore)


async def test_the_result_is_there_before_the_container_has_ended_and_nothing_else_runs_in_it(
    lab: Lab,
) -> None:
    code = "import os, time\nif os.fork() == 0: time.sleep(3600)"
    async with _ended(lab, code) as (session, result):
        assert result.reason is Reason.COMPLETED
        assert session.is_over
        assert (await _state(lab, session))[0] == "running"
        processes = (await lab.engine.call(APIClient.top, session.container_id))["Processes"]
        assert len(processes) == 1
        assert "supervisor" in " ".join(processes[0])


async def test_a_supervisor_that_is_let_go_ends_at_once(lab: Lab) -> None:
    async with _ended(lab) as (session, _):
        session._writer.transport.abort()  # as the kernel does for a process that dies
        began = monotonic()

        assert await _until_exited(lab, session) == 0
        assert monotonic() - began < 5


async def test_a_supervisor_that_nobody_lets_go_ends_by_itself(lab: Lab) -> None:
    async with _ended(lab) as (session, _):
        began = monotonic()

        assert await _until_exited(lab, session) == 0
        assert 8 < monotonic() - began < 18


@pytest.mark.parametrize(("number", "exit_code"), [("SIGTERM", 0), ("SIGKILL", 137)])
async def test_a_supervisor_that_waits_to_be_let_go_can_be_stopped_and_killed(
    lab: Lab, number: str, exit_code: int
) -> None:
    async with _ended(lab) as (session, _):
        began = monotonic()
        await lab.engine.call(APIClient.kill, session.container_id, number)

        assert await _until_exited(lab, session) == exit_code
        assert monotonic() - began < 5


async def test_a_stop_after_the_result_harms_nothing(lab: Lab) -> None:
    async with _ended(lab) as (session, result):
        await session.stop(Reason.TIMEOUT, "too late")
        # Time for the supervisor to read it.
        await asyncio.sleep(0.2)

        assert result.reason is Reason.COMPLETED
        assert (await _state(lab, session))[0] == "running"


async def test_a_stop_at_the_very_end_gives_a_whole_result_whichever_comes_first(lab: Lab) -> None:
    async def run(delay: float) -> tuple[Reason, bytes]:
        output = bytearray()
        spoke = asyncio.Event()

        def sink(_stream: OutputStream, data: bytes) -> None:
            output.extend(data)
            spoke.set()

        async with lab.sandbox.open(lab.spec()) as session:

            async def stop() -> None:
                await spoke.wait()
                await asyncio.sleep(delay)
                await session.stop(Reason.CANCELLED, "cancelled")

            stopping = asyncio.create_task(stop())
            result = await session.run(_job("print('done')"), sink=sink, before_stop=_ignore)
            await stopping
        assert result.cpu_seconds is not None, result
        return result.reason, bytes(output)

    for delay in (0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02):
        reason, output = await run(delay)
        assert reason in (Reason.COMPLETED, Reason.CANCELLED)
        assert output == b"done\n"


async def test_an_agent_that_writes_an_end_mark_of_its_own_ends_nothing(lab: Lab) -> None:
    forged = END_MAGIC + b"f" * 32 + bytes(32)

    ran = await lab.run(f"import os, time\nos.write(2, {forged!r})\ntime.sleep(0.3)\nprint('still here')")

    assert (ran.reason, ran.stdout, ran.stderr) == (Reason.COMPLETED, b"still here\n", forged)


async def test_an_end_mark_of_an_earlier_run_ends_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[str] = []
    make = secrets.token_hex

    def note(count: int) -> str:
        nonces.append(make(count))
        return nonces[-1]

    monkeypatch.setattr(secrets, "token_hex", note)
    await lab.run("print('first')")
    replayed = END_MAGIC + nonces[0].encode() + bytes(32)

    ran = await lab.run(f"import os\nos.write(2, {replayed!r})\nprint('still here')")

    assert (ran.reason, ran.stdout, ran.stderr) == (Reason.COMPLETED, b"still here\n", replayed)


async def test_what_looks_like_the_beginning_of_an_end_mark_is_output(lab: Lab) -> None:
    ran = await lab.run(f"import os\nos.write(2, {END_MAGIC!r})")

    assert (ran.reason, ran.stderr) == (Reason.COMPLETED, END_MAGIC)


async def test_even_with_its_nonce_a_forged_end_does_not_make_a_success_of_a_failure(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _count: "0" * 32)
    mark = END_MAGIC + b"0" * 32 + os.urandom(32)

    began = monotonic()
    ran = await lab.run(f"import os\nos.write(2, {mark!r})\nraise SystemExit(4)")

    assert ran.reason is Reason.RESULT_LOST
    assert "result frame" in ran.error
    # The supervisor is let go, and not waited for.
    assert monotonic() - began < 8


async def test_both_streams_come_whole_and_in_order_before_the_result(lab: Lab) -> None:
    code = """
import os
for line in range(2000):
    os.write(1, b"out %d\\n" % line)
    os.write(2, b"err %d\\n" % line)
import json, sys
json.dump({"fd": 2}, sys.stderr)
"""
    runs = await asyncio.gather(*(lab.run(code) for _ in range(4)))

    for ran in runs:
        assert ran.stdout == b"".join(b"out %d\n" % line for line in range(2000))
        assert (
            ran.stderr
            == b"".join(b"err %d\n" % line for line in range(2000)) + json.dumps({"fd": 2}).encode()
        )


# The removal


async def test_a_container_whose_agent_is_proved_dead_is_removed_in_the_background(lab: Lab) -> None:
    async with _ended(lab) as (session, _):
        pass
    (container,) = await lab.sandbox.owned_containers(lab.store_id)
    assert (container.container_id, container.is_leaving) == (session.container_id, True)

    await lab.sandbox.settle()

    assert await lab.sandbox.owned_containers(lab.store_id) == []


async def test_it_is_removed_though_nobody_asks_for_it(lab: Lab) -> None:
    async with _ended(lab):
        pass

    async def is_gone() -> bool:
        return await lab.sandbox.owned_containers(lab.store_id) == []

    await wait_until(is_gone, what="the removal")


async def test_a_container_that_was_stopped_for_a_lost_lease_is_gone_when_it_is_left(lab: Lab) -> None:
    async def lose(session: DockerSession) -> None:
        await session.stop(Reason.LOST, "the lease was lost")

    ran = await lab.run("import time; print('started'); time.sleep(3600)", during=lose)

    assert ran.reason is Reason.LOST
    assert await lab.sandbox.owned_containers(lab.store_id) == []


async def test_a_container_without_a_report_is_gone_when_it_is_left(lab: Lab) -> None:
    async def kill(session: DockerSession) -> None:
        await lab.engine.call(APIClient.kill, session.container_id, "SIGKILL")

    ran = await lab.run("import time; print('started'); time.sleep(3600)", during=kill)
    assert ran.reason is Reason.RESULT_LOST
    assert await lab.sandbox.owned_containers(lab.store_id) == []

    await lab.run(command=("sh", "-c", "echo a command reports nothing"))
    assert await lab.sandbox.owned_containers(lab.store_id) == []


async def test_a_sandbox_that_is_closed_has_removed_everything(sandbox_image: str, lab: Lab) -> None:
    sandbox = make_sandbox(Settings.load(), SystemClock())
    own = Lab(sandbox, sandbox_image)
    await asyncio.gather(*(own.run("print('done')") for _ in range(4)))
    assert await sandbox.owned_containers(own.store_id) != []

    await sandbox.close()

    assert await lab.sandbox.owned_containers(own.store_id) == []


async def test_a_sweep_of_the_same_process_leaves_what_is_being_removed_to_it(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    await store.open()
    store._file.store_id = lab.store_id
    async with _ended(lab):
        pass

    report = await sweep(store, lab.sandbox)
    await lab.sandbox.settle()
    await store.close()

    assert report.removed_containers == 0
    assert caplog.records == []


async def test_a_removal_by_another_process_at_the_same_time_is_harmless(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        async with _ended(lab) as (session, _):
            pass
        await asyncio.gather(lab.sandbox.remove_container(session.container_id), lab.sandbox.settle())

        assert await lab.sandbox.owned_containers(lab.store_id) == []
    assert caplog.records == []


async def test_a_container_that_the_engine_will_not_remove_is_reported_and_found_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(engine: Engine, container: str) -> None:
        raise EngineRefusedError("device is busy", 500)

    monkeypatch.setattr(containers_module, "REMOVE_TRIES", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "remove_container", refuse)
        async with _ended(lab) as (session, _):
            pass
        await lab.sandbox.settle()

    (record,) = caplog.records
    assert "device is busy" in record.getMessage()
    assert record.__dict__["action"] == "container_quarantined"
    (container,) = await lab.sandbox.owned_containers(lab.store_id)
    assert not container.is_leaving
    await lab.sandbox.remove_container(session.container_id)
