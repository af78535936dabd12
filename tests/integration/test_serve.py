"""`harness serve` and `harness runner` as processes, on a SQLite store and the real engine."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from tests.sandboxes import wait_until
from tests.services import LEASE_SECONDS, Site, get, site, stopwatch, until_answer

from harness.models import Reason, SkipReason, Task, TaskStatus
from harness.sandbox.locate import find_engine
from harness.scheduler import TaskScheduler
from harness.settings import Settings

__all__ = ["site"]

EVERY_SECOND = {"type": "interval", "interval_seconds": 1}

LONG = "import time\nprint('begun', flush=True)\ntime.sleep(60)\n"
#: Does not end at SIGTERM.
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LONG.partition("\n")[2]
#: Its first attempt is long, any other one is over at once.
LONG_ONCE = "import handoff, time\nprint('begun', flush=True)\nif handoff.task.attempt == 1: time.sleep(60)\n"
FAILS = "raise SystemExit(3)\n"


def scheduler(site: Site) -> TaskScheduler:
    """A scheduler that is not started, as the commands use it."""
    return TaskScheduler(store=site.store)


async def trigger(site: Site, agent_id: int) -> Task:
    return await scheduler(site).trigger_now(agent_id)


async def until_count(site: Site, count: int, status: TaskStatus) -> list[Task]:
    async def enough() -> bool:
        return len(await site.tasks(status)) >= count

    await wait_until(enough, what=f"{count} tasks that are {status}")
    return await site.tasks(status)


async def test_a_schedule_fires_and_runs_on_time(site: Site) -> None:
    await site.create(
        "import handoff\nn = context.get('n', 0) + 1\nhandoff.save({'n': n}, f'run {n}')",
        schedule=EVERY_SECOND,
    )
    service = site.start("serve")

    await until_count(site, 4, TaskStatus.COMPLETED)

    assert await service.stop() == 0
    tasks = await site.tasks()
    # On a slow machine a run may be in the way of the next fire; then that is on record.
    ran = [task for task in tasks if task.status is TaskStatus.COMPLETED]
    assert [task.result for task in ran] == [f"run {number}" for number in range(1, len(ran) + 1)]
    fires = [task.fire_at for task in tasks if task.fire_at]
    assert [later - earlier for earlier, later in pairwise(fires)] == [timedelta(seconds=1)] * (
        len(tasks) - 1
    )
    late = [task.started_at - task.fire_at for task in ran if task.started_at and task.fire_at]
    assert timedelta() <= min(late) < timedelta(seconds=1)
    assert {event["task_id"] for event in service.events("run_ended")} == {task.id for task in ran}


async def test_several_processes_run_each_fire_once(site: Site) -> None:
    for number in range(2):
        await site.create("print('hej')", f"agent {number}", schedule={**EVERY_SECOND, "overlap": "allow"})
    services = [site.start("serve"), site.start("serve"), site.start("runner"), site.start("runner")]

    await until_count(site, 12, TaskStatus.COMPLETED)

    assert [await service.stop() for service in services] == [0, 0, 0, 0]
    tasks = await site.tasks()
    assert all(len(task.attempts) <= 1 for task in tasks)
    for agent_id in (1, 2):
        fires = [task.fire_at for task in tasks if task.agent_id == agent_id and task.fire_at]
        assert [later - earlier for earlier, later in pairwise(fires)] == [timedelta(seconds=1)] * (
            len(fires) - 1
        )
    told = [service.events(action) for service in services for action in ("fired", "fire_skipped")]
    assert sorted(event["task_id"] for events in told for event in events) == [task.id for task in tasks]
    ran = [event["task_id"] for service in services for event in service.events("run_began")]
    assert len(ran) == len(set(ran))


@pytest.mark.parametrize("command", ["serve", "runner"])
async def test_a_stop_lets_runs_end(site: Site, command: str) -> None:
    agent = await site.create("import time\nprint('begun', flush=True)\ntime.sleep(1.5)")
    service = site.start(command)
    task = await trigger(site, agent.id)
    await site.until_output(task.id, b"begun")
    later = await site.create(LONG, "later")

    service.send(signal.SIGTERM)
    await service.until("draining")
    waiting = await trigger(site, later.id)

    assert await service.ended() == 0
    assert (await site.store.get_task(task.id)).status is TaskStatus.COMPLETED
    assert (await site.store.get_task(waiting.id)).status is TaskStatus.PENDING
    assert (await site.store.get_task(waiting.id)).attempts == ()


async def test_a_server_that_stops_is_not_ready_but_answers(site: Site) -> None:
    agent = await site.create("import time\nprint('begun', flush=True)\ntime.sleep(1.5)")
    service = site.start("serve")
    url = await service.url()
    await site.until_output((await trigger(site, agent.id)).id, b"begun")

    service.send(signal.SIGTERM)

    assert (await until_answer(f"{url}/readyz", 503))["missing"] == ["scheduler"]
    assert await get(f"{url}/healthz") == (200, {"status": "ok"})
    assert await service.ended() == 0


@pytest.mark.parametrize("command", ["serve", "runner"])
async def test_what_is_not_over_in_time_is_handed_back_and_run_by_another(site: Site, command: str) -> None:
    agent = await site.create(LONG_ONCE)
    first = site.start(command, "--drain-seconds", "0.2")
    task = await trigger(site, agent.id)
    await site.until_output(task.id, b"begun")

    assert await first.stop() == 0

    handed_back = await site.store.get_task(task.id)
    assert (handed_back.status, handed_back.retry_count) == (TaskStatus.PENDING, 0)
    assert handed_back.attempts[0].reason is Reason.LOST
    assert handed_back.attempts[0].error == "its runner was shut down"
    assert await site.containers() == 0
    site.start("runner")
    done = await site.until_status(task.id, TaskStatus.COMPLETED)
    assert [attempt.reason for attempt in done.attempts] == [Reason.LOST, Reason.COMPLETED]


@pytest.mark.parametrize(
    ("command", "first", "second", "code"),
    [
        ("serve", signal.SIGTERM, signal.SIGTERM, 143),
        ("serve", signal.SIGINT, signal.SIGINT, 130),
        ("runner", signal.SIGINT, signal.SIGTERM, 143),
    ],
)
async def test_a_second_signal_stops_at_once(
    site: Site, command: str, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    agent = await site.create(STUBBORN, limits={"grace_seconds": 60})
    service = site.start(command)
    task = await trigger(site, agent.id)
    await site.until_output(task.id, b"begun")

    service.send(first)
    await service.until("draining")
    seconds = stopwatch()
    service.send(second)

    assert await service.ended() == code
    assert seconds() < 5
    assert (await site.store.get_task(task.id)).status is TaskStatus.PENDING
    assert await site.containers() == 0


async def test_a_killed_process_loses_its_task_to_another_after_its_container_is_gone(site: Site) -> None:
    agent = await site.create(LONG_ONCE, retry={"delay_seconds": 0.2})
    killed = site.start("serve")
    task = await trigger(site, agent.id)
    await site.until_output(task.id, b"begun")
    other = site.start("serve")
    await other.until("started")

    killed.process.kill()
    seconds = stopwatch()
    done = await site.until_status(task.id, TaskStatus.COMPLETED)

    assert seconds() < 3 * LEASE_SECONDS
    assert [attempt.reason for attempt in done.attempts] == [Reason.LOST, Reason.COMPLETED]
    assert done.retry_count == 1
    assert [event["task_id"] for event in other.events("task_lost")] == [task.id]
    assert await other.stop() == 0
    assert await site.containers() == 0


async def test_a_task_is_cancelled_from_another_process(site: Site) -> None:
    agent = await site.create(LONG)
    site.start("runner")
    task = await trigger(site, agent.id)
    await site.until_output(task.id, b"begun")

    seconds = stopwatch()
    assert "asked to stop it" in await site.command("tasks", "cancel", str(task.id))
    cancelled = await site.until_status(task.id, TaskStatus.CANCELLED)

    assert seconds() < 4  # the command itself included
    assert cancelled.reason is Reason.CANCELLED
    await site.until_no_container()


async def test_overlap_skip_records_what_it_leaves_out(site: Site) -> None:
    await site.create(LONG, schedule=EVERY_SECOND)
    site.start("serve")

    skipped = await until_count(site, 2, TaskStatus.SKIPPED)

    assert {task.skip_reason for task in skipped} == {SkipReason.OVERLAP}
    assert len(await site.tasks(TaskStatus.RUNNING)) == 1
    assert await site.tasks(TaskStatus.PENDING) == []


async def test_overlap_queue_one_lets_one_fire_wait(site: Site) -> None:
    await site.create(LONG, schedule={**EVERY_SECOND, "overlap": "queue_one"})
    site.start("serve")

    await until_count(site, 2, TaskStatus.SKIPPED)

    assert len(await site.tasks(TaskStatus.RUNNING)) == len(await site.tasks(TaskStatus.PENDING)) == 1
    first = (await site.tasks(TaskStatus.RUNNING))[0]
    await scheduler(site).cancel_task(first.id)
    await site.until_status(first.id + 1, TaskStatus.RUNNING)


async def test_overlap_allow_runs_beside_one_another_up_to_its_number(site: Site) -> None:
    await site.create(LONG, schedule={**EVERY_SECOND, "overlap": "allow", "max_overlap": 2})
    site.start("serve")

    await until_count(site, 1, TaskStatus.SKIPPED)

    assert len(await until_count(site, 2, TaskStatus.RUNNING)) == 2


async def test_overlap_cancel_running_makes_way(site: Site) -> None:
    await site.create(LONG, schedule={"type": "interval", "interval_seconds": 2, "overlap": "cancel_running"})
    site.start("serve")

    cancelled = await until_count(site, 2, TaskStatus.CANCELLED)

    assert {task.reason for task in cancelled} == {Reason.CANCELLED}
    await until_count(site, 1, TaskStatus.RUNNING)


async def test_a_failing_task_is_retried_after_growing_waits_and_then_by_hand(site: Site) -> None:
    agent = await site.create(FAILS, retry={"delay_seconds": 0.4})
    service = site.start("serve")
    task = await trigger(site, agent.id)

    failed = await site.until_status(task.id, TaskStatus.FAILED)

    assert failed.retry_count == 3
    retried = service.events("task_retried")
    assert [event["message"].rpartition(" in ")[2] for event in retried] == ["0.4 s", "0.8 s", "1.6 s"]
    due = [datetime.fromisoformat(event["due_at"]) for event in retried]
    began = [attempt.started_at for attempt in failed.attempts[1:]]
    assert all(due_at <= at for due_at, at in zip(due, began, strict=True)), (due, began)
    assert "retried 3 times already" in await site.command("tasks", "retry", str(task.id), code=3)
    await site.command("tasks", "retry", str(task.id), "--force")
    await site.until_task(task.id, lambda task: task.retry_count == 4 and task.status is TaskStatus.FAILED)


async def test_a_retry_survives_a_restart(site: Site) -> None:
    agent = await site.create(FAILS, retry={"delay_seconds": 2, "max_attempts": 1})
    service = site.start("serve")
    task = await trigger(site, agent.id)
    await site.until_task(task.id, lambda task: task.retry_count == 1)

    assert await service.stop() == 0
    waiting = await site.store.get_task(task.id)
    assert waiting.status is TaskStatus.PENDING
    site.start("serve")

    failed = await site.until_status(task.id, TaskStatus.FAILED)
    assert len(failed.attempts) == 2
    assert waiting.due_at is not None
    assert failed.attempts[1].started_at >= waiting.due_at


async def test_a_paused_schedule_stays_so_over_a_restart_and_goes_on_when_resumed(site: Site) -> None:
    await site.create("print('hej')", schedule=EVERY_SECOND)
    service = site.start("serve")
    await until_count(site, 1, TaskStatus.COMPLETED)

    await site.command("schedule", "pause", "agent")
    await service.stop()
    service = site.start("serve")
    await service.until("started")
    count = len(await site.tasks())
    paused_at = await site.store.now()
    await asyncio.sleep(1.5)  # more than an interval, in which nothing may happen
    assert len(await site.tasks()) == count
    await site.command("schedule", "resume", "agent")

    resumed = await site.until_status(count + 1, TaskStatus.COMPLETED)
    assert resumed.fire_at is not None
    assert resumed.fire_at > paused_at + timedelta(seconds=1)
    assert all(task.skip_reason is not SkipReason.MISSED for task in await site.tasks())


async def test_a_detached_run_is_done_by_a_server(site: Site) -> None:
    await site.create("print('hej', context['who'])")
    site.start("serve")

    said = await site.command("run", "agent", "--detach", "--context", '{"who": "du"}')

    assert said == "task 1 is pending; follow it with: harness logs 1 --follow\n"
    assert (await site.until_status(1, TaskStatus.COMPLETED)).result == "hej du"


async def test_tasks_wait_while_the_engine_is_away(site: Site) -> None:
    real = urlsplit(find_engine(Settings()).url).path
    engine = site.folder / "docker.sock"
    agent = await site.create("print('hej')")
    # One that waited would run the task without asking the engine for anything.
    service = site.start("serve", DOCKER_HOST=f"unix://{engine}", HARNESS_WARM_CONTAINERS="0")
    url = await service.url()

    body = await until_answer(f"{url}/readyz", 503)
    assert body["missing"] == ["engine"]
    assert str(engine) in body["checks"]["engine"]
    task = await trigger(site, agent.id)
    await service.until("claim_failed")
    assert (await site.store.get_task(task.id)).attempts == ()

    engine.symlink_to(real)
    await until_answer(f"{url}/readyz", 200)
    await site.until_status(task.id, TaskStatus.COMPLETED)

    engine.unlink()
    assert (await until_answer(f"{url}/readyz", 503))["missing"] == ["engine"]
    again = await trigger(site, agent.id)
    await service.until("claim_failed", 2)
    engine.symlink_to(real)
    done = await site.until_status(again.id, TaskStatus.COMPLETED)
    assert done.retry_count == 0


async def test_a_store_that_is_away_for_a_while_does_not_end_a_server(site: Site) -> None:
    service = site.start("serve")
    url = await service.url()
    agent = await site.create("print('hej')")
    await site.create("print('hej')", "scheduled", schedule=EVERY_SECOND)
    lock = sqlite3.connect(site.folder / "data" / "harness.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        await service.until("firing_failed")
    finally:
        lock.execute("ROLLBACK")
        lock.close()

    await until_answer(f"{url}/readyz", 200)
    task = await trigger(site, agent.id)
    await site.until_status(task.id, TaskStatus.COMPLETED)


async def test_a_store_that_is_away_at_the_start_ends_it_with_4(site: Site) -> None:
    (site.folder / "file").write_text("no folder")

    service = site.start("serve", HARNESS_DATA_DIR=str(site.folder / "file"))

    assert await service.ended() == 4
    assert [event["code"] for event in service.events("failed")] == ["store_unavailable"]


async def test_a_second_server_on_one_port_says_so_and_leaves_the_first_alone(site: Site) -> None:
    first = site.start("serve")
    url = await first.url()
    port = str(urlsplit(url).port)

    second = site.start("serve", "--port", port)

    assert await second.ended() == 1
    (failure,) = second.events("failed")
    assert failure["code"] == "address_unavailable"
    assert f"port {port}" in failure["message"]
    assert second.events("store_opened") == []
    assert (await get(f"{url}/readyz"))[0] == 200


async def test_a_server_forgets_by_itself_and_its_agents_go_on(site: Site) -> None:
    agent = await site.create(
        "import handoff\nhandoff.save({'n': context.get('n', 0) + 1})\nprint('hej')",
        retention={"task_days": 1, "max_artifacts": 1},
    )
    first = site.start("serve")
    for number in range(1, 4):
        await trigger(site, agent.id)
        await site.until_status(number, TaskStatus.COMPLETED)
    assert await first.stop() == 0
    assert first.events("purged") == []
    age(site, timedelta(days=2))

    services = [site.start("serve"), site.start("serve")]

    async def is_done() -> bool:
        return (len(await site.tasks()), len(await site.store.artifact_history(agent.id))) == (0, 1)

    await wait_until(is_done, what="what is not to be kept being deleted")
    task = await trigger(site, agent.id)
    await site.until_status(task.id, TaskStatus.COMPLETED)
    assert [await service.stop() for service in services] == [0, 0]
    told = [event for service in services for event in service.events("purged")]
    assert sum(event["tasks"] for event in told) == 3
    assert [kept.id for kept in await site.tasks()] == [task.id] == [4]
    assert await site.store.read_logs(1) == []
    newest = await site.store.newest_artifact(agent.id)
    assert newest is not None
    assert (newest.state, newest.run_count, newest.version) == ({"n": 4}, 4, 4)


def age(site: Site, by: timedelta) -> None:
    """Make what was stored older."""
    with closing(sqlite3.connect(site.folder / "data" / "harness.db", isolation_level=None)) as db:
        for table, column in (("tasks", "completed_at"), ("artifacts", "created_at")):
            db.execute(f"UPDATE {table} SET {column} = {column} - ?", (by // timedelta(milliseconds=1),))
