"""The oracle test's checker finds each kind of violation, and none in a run without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.torture.checker import check, due_fires, lateness
from tests.torture.evidence import origins, stories
from tests.torture.facts import AgentSeen, ContainerSeen, EngineSeen, Facts, ProcessEnded, Sight, Switched

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
#: Of the containers that were made to wait.
OWNER = "host:77:abcd"
EVERY_10 = {"type": "interval", "interval_seconds": 10, "end_at": "2026-01-01T00:00:30Z"}


def at(seconds: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def container(task_id: int, number: int) -> str:
    return f"{task_id:032x}{number:032x}"


def line(word: str, task_id: int, number: int, seconds: float, *, container_id: str = "") -> str:
    where = container_id or container(task_id, number)
    return f"{word} {task_id} {number} {where} {at(seconds).timestamp():.6f}\n"


def switch(is_on: bool, began: float, ended: float) -> Switched:
    return Switched(is_on, at(began), at(ended))


@dataclass
class Scene:
    """A run of one agent that fires at 10, 20 and 30 s: two runs, the second with a retry, and a skip in between.

    The retry runs in a container that waited for it, and is over before that is named.
    """

    rule: dict[str, Any] = field(default_factory=lambda: dict(EVERY_10))
    tasks: list[Task] = field(default_factory=list)
    artifacts: list[HandoffArtifact] = field(default_factory=list)
    logs: dict[int, list[LogChunk]] = field(default_factory=dict)
    sights: list[Sight] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    heard: dict[str, str] = field(default_factory=dict)
    ended: list[ProcessEnded] = field(default_factory=list)
    engine_away: list[tuple[datetime, datetime]] = field(default_factory=list)
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
            is_warm = ordinal > 1
            made_at = now - 5 if is_warm else now
            self.sights += [
                self.sight("create", task_id, number, made_at, is_warm=is_warm),
                self.sight("start", task_id, number, made_at, is_warm=is_warm),
            ]
            words = {"begin": now} | ({"end": now + seconds} if reason is Reason.COMPLETED else {})
            for index, (word, said) in enumerate(words.items()):
                data = line(word, task_id, ordinal, said).encode()
                logs.append(LogChunk(seq=log_seq(number, index), stream="stdout", data=data, at=at(said)))
            now += seconds
            self.sights += [
                self.sight("die", task_id, number, now, is_warm=is_warm),
                self.sight("destroy", task_id, number, now, is_warm=is_warm),
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
    def sight(
        action: Any, task_id: int, number: int, seconds: float, *, is_warm: bool = False
    ) -> ContainerSeen:
        attempt, owner = (None, OWNER) if is_warm else ((task_id, number), None)
        return ContainerSeen(action, container(task_id, number), attempt, owner, at(seconds))

    def change_sights(self, container_id: str, **changes: Any) -> None:
        self.sights = [
            replace(one, **changes)
            if isinstance(one, ContainerSeen) and one.container_id == container_id
            else one
            for one in self.sights
        ]

    def drop_sights(self, container_id: str, *actions: str) -> None:
        self.sights = [
            one
            for one in self.sights
            if not (
                isinstance(one, ContainerSeen)
                and one.container_id == container_id
                and (not actions or one.action in actions)
            )
        ]

    def change_task(self, task_id: int, **changes: Any) -> None:
        self.tasks = [one.model_copy(update=changes) if one.id == task_id else one for one in self.tasks]

    def change_artifact(self, index: int, **changes: Any) -> None:
        self.artifacts[index] = self.artifacts[index].model_copy(update=changes)

    def facts(self) -> Facts:
        schedule = ScheduleState(agent_id=1, agent_version=1, anchor_at=ANCHOR)
        newest = self.artifacts[-1] if self.artifacts else None
        agent = AgentSeen(1, {"schedule": self.rule}, schedule, self.artifacts, newest, self.switched)
        return Facts(
            [agent], self.tasks, self.logs, self.sights, self.heard, self.ended, self.engine_away, self.left
        )

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


def _say_the_end_late(scene: Scene) -> None:
    """The first run ends, by its agent's own word, while the second one runs; its container outlasts it."""
    _leave_the_container(scene)
    scene.logs[1][1] = scene.logs[1][1].model_copy(update={"data": line("end", 1, 1, 33).encode()})


def _leave_the_container(scene: Scene) -> None:
    scene.drop_sights(container(1, 1), "die", "destroy")


def _outlive_the_lease(scene: Scene) -> None:
    """The lost attempt goes on beside its successor; nobody hears of its end but the engine."""
    scene.change_sights(container(3, 1), at=at(30.1))
    scene.drop_sights(container(3, 1), "die", "destroy")
    scene.sights.append(scene.sight("die", 3, 1, 33))


def _run_on_unnamed(scene: Scene) -> None:
    """An attempt that was given up begins late, in a container that nothing gave to it, and the product shows no line."""
    scene.drop_sights(container(3, 1))
    scene.sights += [
        scene.sight("start", 3, 1, 20, is_warm=True),
        scene.sight("die", 3, 1, 33.5, is_warm=True),
    ]
    scene.logs[3].pop(0)
    scene.heard[container(3, 1)] = line("begin", 3, 1, 33)


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
    scene.logs[3][1] = scene.logs[3][1].model_copy(update={"data": line("begin", 3, 1, 32.1).encode()})


def _lose_the_last_words(scene: Scene) -> None:
    scene.logs[1].pop()


def _run_twice(scene: Scene) -> None:
    second = replace(scene.sight("start", 1, 1, 21.1), container_id="other")
    scene.sights += [second, replace(second, action="die")]


def _run_nothing(scene: Scene) -> None:
    scene.drop_sights(container(1, 1))


def _run_what_nobody_claimed(scene: Scene) -> None:
    scene.sights.append(scene.sight("create", 3, 9, 40))


def _be_heard_unclaimed(scene: Scene) -> None:
    scene.sights.append(replace(scene.sight("start", 3, 9, 40), attempt=None, owner=OWNER))
    scene.heard[container(3, 9)] = line("begin", 3, 9, 41)


def _be_named_twice(scene: Scene) -> None:
    """The container of the retry is named after an attempt that it was not given to."""
    scene.sights.append(replace(scene.sight("rename", 3, 2, 32.2), attempt=(1, 1), owner=OWNER))


def _use_a_container_again(scene: Scene) -> None:
    """The retry says that it is in the first attempt's container."""
    old = container(3, 1)
    scene.logs[3][1:] = [
        chunk.model_copy(update={"data": line(word, 3, 2, said, container_id=old).encode()})
        for chunk, word, said in zip(scene.logs[3][1:], ("begin", "end"), (32.1, 34.1), strict=True)
    ]


def _run_the_job_again(scene: Scene) -> None:
    scene.heard[container(3, 2)] = line("begin", 3, 2, 32.1) + line("begin", 3, 2, 33)


def _be_somewhere_else(scene: Scene) -> None:
    scene.heard[container(1, 1)] = line("begin", 3, 2, 32.1)


def _outlive_the_owner(scene: Scene) -> None:
    scene.ended.append(ProcessEnded(77, at(30)))
    scene.sights.append(replace(scene.sight("start", 3, 7, 29, is_warm=True), container_id="idle"))
    scene.sights.append(replace(scene.sight("die", 3, 7, 41, is_warm=True), container_id="idle"))


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
        (_say_the_end_late, "P3: agent 1 runs 2 at once at 2026-01-01 00:00:30.100000+00:00: task 1 attempt 1, task 3 attempt 1"),
        (_outlive_the_lease, "P3: agent 1 runs 2 at once at 2026-01-01 00:00:32.100000+00:00: task 3 attempt 1, task 3 attempt 2"),
        (_run_on_unnamed, "P3: agent 1 runs 2 at once at 2026-01-01 00:00:33+00:00: task 3 attempt 2, task 3 attempt 1"),
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
        (_mix_output_up, "P6: attempt 2 of task 3 has the line 'begin 3 1 "),
        (_lose_the_last_words, "P6: the winning attempt 1 of task 1 printed"),
        (_run_twice, "P2: task 1 attempt 1 ran in 2 containers"),
        (_run_nothing, "P2: task 1 attempt 1 is completed, and no container ran"),
        (_run_what_nobody_claimed, f"P6: container {container(3, 9)} was of task 3 attempt 9: not known"),
        (_be_heard_unclaimed, f"P6: container {container(3, 9)} was of task 3 attempt 9: not known"),
        (_be_named_twice, f"P2: container {container(3, 2)} was used by task 1 attempt 1, task 3 attempt 2"),
        (_use_a_container_again, f"P2: container {container(3, 1)} was used by task 3 attempt 1, task 3 attempt 2"),
        (_run_the_job_again, f"P2: in container {container(3, 2)} 2 agents began"),
        (_be_somewhere_else, f"P2: container {container(1, 1)} was heard to be {container(3, 2)}"),
        (_outlive_the_owner, "P7: container idle outlived its owner by 11.0 s"),
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


def test_a_container_that_outlasts_its_agents_last_word_is_no_overlap() -> None:
    scene = Scene()
    _leave_the_container(scene)
    assert scene.found() == []


def test_a_container_ends_an_attempt_whose_agent_said_no_last_word() -> None:
    scene = Scene()
    scene.logs[3].pop(0)
    assert scene.found() == []
    _outlive_the_lease(scene)
    assert [found[:2] for found in scene.found()] == ["P3"]


def test_an_attempt_that_was_stopped_before_its_agents_first_word_did_not_run() -> None:
    scene = Scene()
    scene.logs[3] = scene.logs[3][1:]
    first, second = scene.tasks[2].attempts
    _outlive_the_lease(scene)
    scene.change_task(3, attempts=(first.model_copy(update={"reason": Reason.SANDBOX_ERROR}), second))
    assert scene.found() == []
    scene.change_task(3, attempts=(first, second))
    assert [found[:2] for found in scene.found()] == ["P3"]


def test_a_run_that_has_a_name_but_no_words_began_when_it_was_named() -> None:
    scene = Scene()
    scene.change_task(3, status=TaskStatus.FAILED, reason=Reason.LOST)
    first, second = scene.tasks[2].attempts
    scene.change_task(3, attempts=(first, second.model_copy(update={"reason": Reason.LOST})))
    scene.artifacts.pop()
    del scene.logs[3]
    # It waited while the attempt before it ran.
    scene.sights.append(replace(scene.sight("rename", 3, 2, 32.2), owner=OWNER))
    assert scene.found() == []
    scene.sights[-1] = replace(scene.sight("rename", 3, 2, 32), owner=OWNER)
    assert [found[:2] for found in scene.found()] == ["P3"]


def test_a_container_that_never_got_a_task_is_none_of_an_attempt() -> None:
    scene = Scene()
    for action, seconds in (("create", 1), ("start", 1), ("die", 40), ("destroy", 40)):
        scene.sights.append(scene.sight(action, 9, 9, seconds, is_warm=True))
    assert scene.found() == []
    assert origins(stories(scene.facts())) == {"cold": 2, "warm": 1, "never used": 1}
    scene.sights.append(scene.sight("update", 3, 2, 32, is_warm=True))
    assert origins(stories(scene.facts())) == {"cold": 2, "adapted": 1, "never used": 1}


def test_an_engine_that_is_away_can_end_no_container() -> None:
    scene = Scene()
    _outlive_the_owner(scene)
    scene.engine_away = [(at(29), at(31.5))]
    assert scene.found() == []
    scene.engine_away = [(at(29), at(30.5))]
    assert [found[:2] for found in scene.found()] == ["P7"]


def test_the_owner_of_a_container_is_not_who_had_its_number_before() -> None:
    scene = Scene()
    _outlive_the_owner(scene)
    scene.ended = [ProcessEnded(77, at(20)), ProcessEnded(77, at(35))]
    assert scene.found() == []


def test_what_an_engine_that_died_ran_has_ended_with_it() -> None:
    scene = Scene()
    _outlive_the_lease(scene)
    scene.sights.append(EngineSeen(frozenset(), at(32)))
    assert scene.found() == []
    scene.sights[-1] = EngineSeen(frozenset({container(3, 1)}), at(32))
    assert [found[:2] for found in scene.found()] == ["P3"]


def test_agents_that_may_overlap_may_do_so_up_to_their_bound() -> None:
    scene = Scene(rule=EVERY_10 | {"overlap": "allow", "max_overlap": 2})
    _say_the_end_late(scene)
    assert scene.found() == []


def test_lateness_counts_starts_that_nothing_held_back() -> None:
    assert lateness(Scene().facts()) == pytest.approx([0.1, 0.1])
