"""The oracle test's checker finds each kind of violation, and none in a run without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.torture.checker import check, due_fires, lateness
from tests.torture.facts import AgentSeen, ContainerSeen, EngineSeen, Facts, Sight, Switched

from harness.models import (
    Attempt,
    HandoffArtifact,
    LogChunk,
    Reason,
    ScheduleState,
    SkipReason,
    Task,
    TaskStatus,
    log_seq,
)

ANCHOR = datetime(2026, 1, 1, 0, 0, 0, 400_000, tzinfo=UTC)
EVERY_10 = {"type": "interval", "interval_seconds": 10, "end_at": "2026-01-01T00:00:30Z"}


def at(seconds: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def switch(is_on: bool, began: float, ended: float) -> Switched:
    return Switched(is_on, at(began), at(ended))


@dataclass
class Scene:
    """A run of one agent that fires at 10, 20 and 30 s: two runs, the second with a retry, and a skip in between."""

    rule: dict[str, Any] = field(default_factory=lambda: dict(EVERY_10))
    tasks: list[Task] = field(default_factory=list)
    artifacts: list[HandoffArtifact] = field(default_factory=list)
    logs: dict[int, list[LogChunk]] = field(default_factory=dict)
    sights: list[Sight] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    switched: list[Switched] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run(1, fire=10, ends=[Reason.COMPLETED], seconds=11.0)
        skip: dict[str, Any] = {"skip_reason": SkipReason.OVERLAP, "skipped_count": 1}
        self.tasks.append(
            Task(id=2, agent_id=1, status=TaskStatus.SKIPPED, trigger="schedule", scheduled_at=at(20), fire_at=at(20),
                 created_at=at(20.1), completed_at=at(20.1), **skip)
        )  # fmt: skip
        self.run(3, fire=30, ends=[Reason.LOST, Reason.COMPLETED], seconds=2.0)

    def run(self, task_id: int, *, fire: float, ends: list[Reason], seconds: float) -> None:
        now, number, attempts = fire + 0.1, 0, list[Attempt]()
        logs = self.logs.setdefault(task_id, [])
        for ordinal, reason in enumerate(ends, start=1):
            number = ordinal
            attempts.append(
                Attempt(number=number, started_at=at(now), ended_at=at(now + seconds), reason=reason)
            )
            self.sights += [
                self.sight("create", task_id, number, now),
                self.sight("start", task_id, number, now),
            ]
            words = ("begin", "end") if reason is Reason.COMPLETED else ("begin",)
            for index, word in enumerate(words):
                data = f"{word} {task_id} {ordinal}\n".encode()
                logs.append(
                    LogChunk(seq=log_seq(number, index), stream="stdout", data=data, at=at(now + seconds))
                )
            now += seconds
            self.sights += [
                self.sight("die", task_id, number, now),
                self.sight("destroy", task_id, number, now),
            ]
        self.tasks.append(
            Task(id=task_id, agent_id=1, status=ends[-1].status, trigger="schedule", scheduled_at=at(fire),
                 fire_at=at(fire), created_at=at(fire + 0.05), started_at=at(fire + 0.1), completed_at=at(now),
                 attempts=tuple(attempts), reason=ends[-1], retry_count=len(ends) - 1, max_retries=3, fence=number)
        )  # fmt: skip
        count = len(self.artifacts) + 1
        state = {"n": count, "task": task_id, "attempt": len(ends)}
        self.artifacts.append(
            HandoffArtifact(agent_id=1, state=state, created_at=at(now), run_count=count, version=count, task_id=task_id)
        )  # fmt: skip

    @staticmethod
    def sight(action: Any, task_id: int, fence: int, seconds: float) -> ContainerSeen:
        return ContainerSeen(action, f"c{task_id}.{fence}", task_id, fence, at(seconds))

    def change_task(self, task_id: int, **changes: Any) -> None:
        self.tasks = [one.model_copy(update=changes) if one.id == task_id else one for one in self.tasks]

    def change_artifact(self, index: int, **changes: Any) -> None:
        self.artifacts[index] = self.artifacts[index].model_copy(update=changes)

    def facts(self) -> Facts:
        schedule = ScheduleState(agent_id=1, agent_version=1, anchor_at=ANCHOR)
        newest = self.artifacts[-1] if self.artifacts else None
        agent = AgentSeen(1, {"schedule": self.rule}, schedule, self.artifacts, newest, self.switched)
        return Facts([agent], self.tasks, self.logs, self.sights, self.left)

    def found(self) -> list[str]:
        return [str(violation) for violation in check(self.facts())]


def test_a_run_without_violations_has_none() -> None:
    assert Scene().found() == []


def test_interval_fires_are_whole_seconds_from_the_anchor_to_the_end() -> None:
    assert due_fires(Scene().facts().agents[0]) == [at(10), at(20), at(30)]


def test_cron_fires_are_whole_minutes() -> None:
    rule = {"type": "cron", "cron": "* * * * *", "end_at": "2026-01-01T00:02:59Z"}
    assert due_fires(Scene(rule=rule).facts().agents[0]) == [at(60), at(120)]


def test_a_skip_may_stand_for_a_range_of_fires() -> None:
    scene = Scene(rule=EVERY_10 | {"end_at": "2026-01-01T00:01:00Z", "misfire_grace_seconds": 0})
    missed = {"skip_reason": SkipReason.MISSED, "status": TaskStatus.SKIPPED}
    task = scene.tasks[1].model_copy(update=missed | {"id": 4, "fire_at": at(40), "skipped_until": at(60)})
    scene.tasks.append(
        task.model_copy(update={"skipped_count": 3, "created_at": at(70), "completed_at": at(70)})
    )
    assert scene.found() == []
    scene.change_task(4, skipped_count=2)
    assert scene.found() == ["P1: skip 4 counts 2 fires, not 3"]
    scene.change_task(4, skipped_count=3, skipped_until=at(61))
    assert "no due fire" in scene.found()[0]


def test_what_comes_due_while_a_schedule_is_off_is_no_fire_and_what_was_due_before_is_a_skip() -> None:
    scene = Scene()
    scene.switched = [switch(False, 15, 15.1), switch(True, 25, 25.1)]
    scene.tasks.pop(1)
    assert scene.found() == []
    scene = Scene()
    scene.switched = [switch(False, 20.05, 20.2), switch(True, 29, 29.1)]
    scene.change_task(2, skip_reason=SkipReason.DISABLED)
    assert scene.found() == []


def test_a_fire_at_the_moment_of_a_switch_may_be_one_or_none() -> None:
    for is_on in (False, True):
        scene = Scene()
        scene.switched = [switch(False, 15, 15.1)] * is_on + [switch(is_on, 19.9, 20.2)]
        scene.switched += [switch(True, 29, 29.1)] * (not is_on)
        assert scene.found() == []
        scene.tasks.pop(1)
        assert scene.found() == []


def _lose_fire(scene: Scene) -> None:
    scene.tasks = [task for task in scene.tasks if task.id != 2]


def _fire_twice(scene: Scene) -> None:
    scene.tasks.append(scene.tasks[1].model_copy(update={"id": 4}))


def _fire_off_the_grid(scene: Scene) -> None:
    scene.tasks.append(scene.tasks[1].model_copy(update={"id": 4, "fire_at": at(21)}))


def _answer_for_nothing(scene: Scene) -> None:
    scene.tasks.append(scene.tasks[1].model_copy(update={"id": 4, "fire_at": None}))


def _skip_an_idle_agent(scene: Scene) -> None:
    scene.change_task(1, completed_at=at(20))


def _miss_on_time(scene: Scene) -> None:
    scene.change_task(2, skip_reason=SkipReason.MISSED)


def _overlap(scene: Scene) -> None:
    _leave_the_container(scene)
    (attempt,) = scene.tasks[0].attempts
    scene.change_task(1, attempts=(attempt.model_copy(update={"ended_at": at(33)}),))


def _leave_the_container(scene: Scene) -> None:
    scene.sights = [sight for sight in scene.sights if sight.at != at(21.1)]


def _start_before_the_old_one_died(scene: Scene) -> None:
    old_dies, new_starts = scene.sight("die", 3, 1, 32.1), scene.sight("start", 3, 2, 32.1)
    one, other = scene.sights.index(old_dies), scene.sights.index(new_starts)
    destroyed = scene.sights.index(scene.sight("destroy", 3, 1, 32.1))
    scene.sights.insert(one, scene.sights.pop(other))
    assert destroyed > one


def _never_end(scene: Scene) -> None:
    scene.change_task(3, status=TaskStatus.RUNNING, completed_at=None, due_at=at(40), lease_owner="x")


def _stay_due(scene: Scene) -> None:
    scene.change_task(3, due_at=at(40))


def _retry_too_often(scene: Scene) -> None:
    scene.change_task(3, max_retries=0)


def _let_the_stale_attempt_save(scene: Scene) -> None:
    scene.change_artifact(1, state={"n": 2, "task": 3, "attempt": 1})


def _save_twice(scene: Scene) -> None:
    last = scene.artifacts[-1]
    scene.artifacts.append(last.model_copy(update={"run_count": 3, "state": last.state | {"n": 3}}))


def _lose_an_artifact(scene: Scene) -> None:
    scene.artifacts.pop()


def _count_wrongly(scene: Scene) -> None:
    scene.change_artifact(1, run_count=1)


def _lose_an_update(scene: Scene) -> None:
    scene.change_artifact(1, state=scene.artifacts[1].state | {"n": 1})


def _write_after_being_replaced(scene: Scene) -> None:
    scene.logs[3][0] = scene.logs[3][0].model_copy(update={"at": at(33)})


def _write_as_nobody(scene: Scene) -> None:
    scene.logs[3].append(scene.logs[3][0].model_copy(update={"seq": log_seq(7, 0)}))


def _mix_output_up(scene: Scene) -> None:
    scene.logs[3][1] = scene.logs[3][1].model_copy(update={"data": b"begin 3 1\n"})


def _lose_the_last_words(scene: Scene) -> None:
    scene.logs[1].pop()


def _run_twice(scene: Scene) -> None:
    second = replace(scene.sight("start", 1, 1, 21.1), container_id="other")
    scene.sights += [second, replace(second, action="die")]


def _run_nothing(scene: Scene) -> None:
    scene.sights = [one for one in scene.sights if isinstance(one, ContainerSeen) and one.task_id != 1]


def _run_what_nobody_claimed(scene: Scene) -> None:
    scene.sights.append(scene.sight("create", 3, 9, 40))


def _go_on_after_completing(scene: Scene) -> None:
    first, second = scene.tasks[2].attempts
    scene.change_task(3, attempts=(first.model_copy(update={"reason": Reason.COMPLETED}), second))


def _begin_before_the_old_attempt_ended(scene: Scene) -> None:
    first, second = scene.tasks[2].attempts
    scene.change_task(3, attempts=(first.model_copy(update={"ended_at": at(34)}), second))


def _number_with_a_gap(scene: Scene) -> None:
    first, second = scene.tasks[2].attempts
    scene.change_task(3, attempts=(first, second.model_copy(update={"number": 3})))


def _fire_while_off(scene: Scene) -> None:
    scene.switched = [switch(False, 15, 15.1), switch(True, 25, 25.1)]


def _lose_fire_after_it_was_on_again(scene: Scene) -> None:
    scene.switched = [switch(False, 12, 12.1), switch(True, 15, 15.1)]
    _lose_fire(scene)


def _be_disabled_while_on(scene: Scene) -> None:
    scene.change_task(2, skip_reason=SkipReason.DISABLED)


def _be_disabled_by_a_later_pause(scene: Scene) -> None:
    scene.switched = [switch(False, 20.5, 20.6), switch(True, 25, 25.1)]
    _be_disabled_while_on(scene)


def _leave_a_container(scene: Scene) -> None:
    scene.left.append("c3.2")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_lose_fire, "P1: the fire of agent 1 at 2026-01-01 00:00:20+00:00 became nothing"),
        (_fire_twice, "P2: the fire of agent 1 at 2026-01-01 00:00:20+00:00 became tasks [2, 4]"),
        (_fire_off_the_grid, "P1: task 4 of agent 1 is for 2026-01-01 00:00:21+00:00, no due fire"),
        (_answer_for_nothing, "P1: task 4 of agent 1 answers for no fire"),
        (_skip_an_idle_agent, "P1: skip 2 says overlap, but agent 1 was not busy"),
        (_miss_on_time, "P1: skip 2 says missed, but its fire was on time"),
        (_overlap, "P3: agent 1 runs 2 at once at 2026-01-01 00:00:30.100000+00:00: task 1 attempt 1, task 3 attempt 1"),
        (_start_before_the_old_one_died, "P3: agent 1 runs 2 at once"),
        (_never_end, "P5: task 3 is running"),
        (_stay_due, "P5: task 3 is completed, but is still due"),
        (_retry_too_often, "P5: task 3 was retried 1 times of 0"),
        (_let_the_stale_attempt_save, "P6: task 3's artifact is of"),
        (_save_twice, "P6: agent 1: saved by [] in excess, not by []; 3 in all"),
        (_lose_an_artifact, "P6: agent 1: saved by [] in excess, not by [3]"),
        (_count_wrongly, "P6: agent 1: run 2 is counted as 1"),
        (_lose_an_update, "P6: agent 1 counted 1 in run 2"),
        (_write_after_being_replaced, "P6: attempt 1 of task 3 wrote after it was replaced"),
        (_write_as_nobody, "P6: task 3 has output of attempt 7"),
        (_mix_output_up, "P6: attempt 2 of task 3 has the line 'begin 3 1'"),
        (_lose_the_last_words, "P6: the winning attempt 1 of task 1 printed"),
        (_run_twice, "P2: task 1, attempt 1 ran in 2 containers"),
        (_run_nothing, "P2: task 1, attempt 1 is completed, and no container ran"),
        (_run_what_nobody_claimed, "P6: create of a container for task 3, attempt 9: not known"),
        (_go_on_after_completing, "P6: attempt 1 of task 3 completed, and another followed"),
        (_begin_before_the_old_attempt_ended, "P6: attempts 1 and 2 of task 3 overlap"),
        (_number_with_a_gap, "P6: the attempts of task 3 have the numbers [1, 3]"),
        (_fire_while_off, "P1: task 2 of agent 1 is for 2026-01-01 00:00:20+00:00, no due fire"),
        (_lose_fire_after_it_was_on_again, "P1: the fire of agent 1 at 2026-01-01 00:00:20+00:00 became nothing"),
        (_be_disabled_while_on, "P1: skip 2 says disabled, but agent 1's schedule was on"),
        (_be_disabled_by_a_later_pause, "P1: skip 2 says disabled, but agent 1's schedule was on"),
        (_leave_a_container, "P7: container c3.2 is left"),
    ],
)  # fmt: skip
def test_each_violation_is_found(spoil: Callable[[Scene], None], expected: str) -> None:
    scene = Scene()
    spoil(scene)
    assert any(line.startswith(expected) for line in scene.found()), scene.found()


def test_a_container_that_outlasts_the_stored_end_of_its_attempt_is_no_overlap() -> None:
    scene = Scene()
    _leave_the_container(scene)
    assert scene.found() == []


def test_what_an_engine_that_died_ran_has_ended_with_it() -> None:
    scene = Scene()
    _overlap(scene)
    scene.sights.insert(2, EngineSeen(frozenset(), at(25)))
    assert scene.found() == []
    scene.sights[2] = EngineSeen(frozenset({"c1.1"}), at(25))
    assert [line[:2] for line in scene.found()] == ["P3", "P3"]


def test_agents_that_may_overlap_may_do_so_up_to_their_bound() -> None:
    scene = Scene(rule=EVERY_10 | {"overlap": "allow", "max_overlap": 2})
    _overlap(scene)
    assert scene.found() == []


def test_lateness_counts_starts_that_nothing_held_back() -> None:
    assert lateness(Scene().facts()) == pytest.approx([0.1, 0.1])
