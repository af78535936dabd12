"""Holds what was seen against the promises P1 to P7. Pure; computes due fires by itself, not by the product's triggers.

The agents are those of `tests.torture.fleet`: they print the two lines of `tests.torture.evidence`, and keep in their
state a counter ``n`` and the ``task`` and ``attempt`` that saved it, attempts counted from 1. The schedules are plain
intervals, or cron minutely in UTC, and end by `end_at`, long past when the facts are taken. A schedule may be turned off
and on meanwhile: what comes due while it is off is no fire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.torture.evidence import Run, Story, printed, read_word, runs, stories
from tests.torture.facts import AgentSeen, AttemptKey, Facts

from harness.models import Reason, SkipReason, Task, TaskStatus, log_attempt

#: Ends of an attempt that only an agent which ran can have.
_RAN = (Reason.COMPLETED, Reason.EXIT_NONZERO, Reason.TIMEOUT, Reason.OUT_OF_MEMORY)
#: How far the store's clock may be off the one that the test notes its own calls by.
_CLOCKS_DIFFER = timedelta(milliseconds=50)
#: How long a container that was made to wait may outlive its owner, while the engine is there, on a slow machine.
ORPHANED = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise, broken once."""

    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


def check(facts: Facts) -> list[Violation]:
    """Return every violation found."""
    tasks_of: defaultdict[int, list[Task]] = defaultdict(list)
    for task in facts.tasks:
        tasks_of[task.agent_id].append(task)
    found: list[Violation] = []
    for agent in facts.agents:
        tasks = tasks_of[agent.agent_id]
        found += _check_fires(agent, tasks)
        found += _check_skips(agent, tasks, facts.stamp_slack)
        found += _check_artifacts(agent, tasks)
    for task in facts.tasks:
        found += _check_end(task)
        found += _check_attempts(task)
        found += _check_logs(task, facts)
    containers = stories(facts)
    found += _check_containers(facts, containers)
    found += _check_words(containers)
    found += _check_overlap(facts, list(runs(containers)))
    found += _check_orphans(facts, containers)
    found += [Violation("P7", f"container {container} is left") for container in facts.containers_left]
    return found


def due_fires(agent: AgentSeen) -> list[datetime]:
    """Return every fire that the agent's schedule owes from when it came into force to its end."""
    anchor = agent.schedule.anchor_at.replace(microsecond=0)
    end = datetime.fromisoformat(str(agent.rule["end_at"])).astimezone(UTC).replace(microsecond=0)
    if agent.rule["type"] == "cron":
        assert agent.rule["cron"] == "* * * * *"
        step = timedelta(minutes=1)
        anchor = anchor.replace(second=0)
    else:
        seconds = agent.rule["interval_seconds"]
        assert isinstance(seconds, int)
        step = timedelta(seconds=seconds)
    return [anchor + step * n for n in range(1, (end - anchor) // step + 1)]


def _check_fires(agent: AgentSeen, tasks: Sequence[Task]) -> Iterator[Violation]:
    """P1 and P2: due fires and records match one to one."""
    in_force = {fire: _in_force(agent, fire) for fire in due_fires(agent)}
    owed = [fire for fire, known in in_force.items() if known is not False]
    takers: dict[datetime, list[int]] = {fire: [] for fire in owed}
    for task in tasks:
        if task.fire_at is None:
            yield Violation("P1", f"task {task.id} of agent {agent.agent_id} answers for no fire")
            continue
        until = task.skipped_until or task.fire_at
        covered = [fire for fire in owed if task.fire_at <= fire <= until]
        for fire in covered:
            takers[fire].append(task.id)
        if task.fire_at not in takers or until not in takers:
            yield Violation(
                "P1", f"task {task.id} of agent {agent.agent_id} is for {task.fire_at}, no due fire"
            )
        if task.status is TaskStatus.SKIPPED and task.skipped_count != len(covered):
            yield Violation("P1", f"skip {task.id} counts {task.skipped_count} fires, not {len(covered)}")
        if task.status is not TaskStatus.SKIPPED and task.skipped_until is not None:
            yield Violation("P1", f"task {task.id} ran and yet stands for skipped fires")
    for fire, ids in takers.items():
        if not ids and in_force[fire]:
            yield Violation("P1", f"the fire of agent {agent.agent_id} at {fire} became nothing")
        elif len(ids) > 1:
            yield Violation("P2", f"the fire of agent {agent.agent_id} at {fire} became tasks {ids}")


def _in_force(agent: AgentSeen, fire: datetime) -> bool | None:
    """Return whether the schedule was on at an instant; None: it was being turned off or on."""
    is_on = True
    for switched in agent.switched:
        if fire < switched.began_at - _CLOCKS_DIFFER:
            break
        if fire <= switched.ended_at + _CLOCKS_DIFFER:
            return None
        is_on = switched.is_on
    return is_on


def _was_turned_off(agent: AgentSeen, skip: Task, slack: timedelta) -> bool:
    """Return whether a skip was recorded as its schedule was turned off, for fires from before."""
    last = skip.skipped_until or skip.fire_at
    assert last is not None
    return any(
        switched.began_at - _CLOCKS_DIFFER <= skip.created_at <= switched.ended_at + slack + _CLOCKS_DIFFER
        and last <= switched.ended_at + _CLOCKS_DIFFER
        for switched in agent.switched
        if not switched.is_on
    )


def _check_skips(agent: AgentSeen, tasks: Sequence[Task], slack: timedelta) -> Iterator[Violation]:
    """P1: a skip's reason is true."""
    grace = agent.rule.get("misfire_grace_seconds", 60)
    assert isinstance(grace, int | float)
    for task in tasks:
        if task.status is not TaskStatus.SKIPPED:
            continue
        if task.skip_reason is SkipReason.MISSED and not agent.rule.get("jitter_seconds"):
            last = task.skipped_until or task.fire_at
            assert last is not None
            if task.created_at - last < timedelta(seconds=max(grace, 1)):
                yield Violation("P1", f"skip {task.id} says missed, but its fire was on time")
        if task.skip_reason is SkipReason.DISABLED and not _was_turned_off(agent, task, slack):
            yield Violation(
                "P1", f"skip {task.id} says disabled, but agent {agent.agent_id}'s schedule was on"
            )
        if task.skip_reason is SkipReason.OVERLAP and not any(
            _was_active(other, task.created_at, slack) for other in tasks if other is not task
        ):
            yield Violation("P1", f"skip {task.id} says overlap, but agent {agent.agent_id} was not busy")


def _was_active(task: Task, at: datetime, slack: timedelta = timedelta()) -> bool:
    if task.status is TaskStatus.SKIPPED and task.skip_reason is not SkipReason.SUPERSEDED:
        return False
    return task.created_at <= at + slack and (task.completed_at is None or task.completed_at >= at - slack)


def _check_artifacts(agent: AgentSeen, tasks: Sequence[Task]) -> Iterator[Violation]:
    """P6: what was saved, was saved by the winning attempts, once each."""
    by_id = {task.id: task for task in tasks}
    completed = {task.id for task in tasks if task.status is TaskStatus.COMPLETED}
    savers = [artifact.task_id for artifact in agent.artifacts]
    if len(savers) != len(completed) or set(savers) != completed:
        extra, missing = [saver for saver in savers if saver not in completed], completed - set(savers)
        yield Violation(
            "P6",
            f"agent {agent.agent_id}: saved by {extra} in excess, not by {sorted(missing)}; {len(savers)} in all",
        )
    for count, artifact in enumerate(agent.artifacts, start=1):
        if artifact.run_count != count:
            yield Violation("P6", f"agent {agent.agent_id}: run {count} is counted as {artifact.run_count}")
        task = by_id.get(artifact.task_id or 0)
        if task is not None and (artifact.state["task"], artifact.state["attempt"]) != (
            task.id,
            len(task.attempts),
        ):
            yield Violation(
                "P6", f"task {task.id}'s artifact is of {artifact.state}, not of its last attempt"
            )
        if agent.max_active == 1 and artifact.state["n"] != count:
            yield Violation("P6", f"agent {agent.agent_id} counted {artifact.state['n']} in run {count}")
    if agent.artifacts and agent.newest != agent.artifacts[-1]:
        yield Violation("P6", f"agent {agent.agent_id}: the newest artifact is not the last one saved")


def _check_end(task: Task) -> Iterator[Violation]:
    """P5: every task has ended, and is marked as one that has."""
    if not task.status.is_final:
        yield Violation("P5", f"task {task.id} is {task.status}")
    elif task.due_at is not None or task.lease_owner is not None or task.completed_at is None:
        yield Violation("P5", f"task {task.id} is {task.status}, but is still due, leased or not completed")
    if task.retry_count > task.max_retries:
        yield Violation("P5", f"task {task.id} was retried {task.retry_count} times of {task.max_retries}")


def _check_attempts(task: Task) -> Iterator[Violation]:
    """P6: attempts are numbered without gaps, follow one another, and the last one decides."""
    numbers = [attempt.number for attempt in task.attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Violation("P6", f"the attempts of task {task.id} have the numbers {numbers}")
    for one, other in zip(task.attempts, task.attempts[1:], strict=False):
        if one.number >= other.number or one.ended_at is None or one.ended_at > other.started_at:
            yield Violation("P6", f"attempts {one.number} and {other.number} of task {task.id} overlap")
        if one.reason is Reason.COMPLETED:
            yield Violation("P6", f"attempt {one.number} of task {task.id} completed, and another followed")
    last = task.attempt
    if task.status is TaskStatus.COMPLETED and (last is None or last.reason is not Reason.COMPLETED):
        yield Violation("P6", f"task {task.id} completed, but not its last attempt")
    if task.status is TaskStatus.SKIPPED and last is not None:
        yield Violation("P6", f"task {task.id} was skipped, and ran")


def _check_logs(task: Task, facts: Facts) -> Iterator[Violation]:
    """P6: each line was written by a known attempt, while it was the newest; the winner's lines are complete."""
    ends = {
        one.number: other.started_at for one, other in zip(task.attempts, task.attempts[1:], strict=False)
    }
    numbers = {attempt.number for attempt in task.attempts}
    for chunk in facts.logs.get(task.id, ()):
        number = log_attempt(chunk.seq)
        if number not in numbers:
            yield Violation("P6", f"task {task.id} has output of attempt {number}, which it never had")
        elif number in ends and chunk.at > ends[number]:
            yield Violation("P6", f"attempt {number} of task {task.id} wrote after it was replaced")
    said: defaultdict[int, list[str]] = defaultdict(list)
    for number, text in printed(facts, task.id).items():
        for line in text.splitlines():
            word = read_word(line)
            if word is None or word.attempt != (task.id, number):
                yield Violation("P6", f"attempt {number} of task {task.id} has the line {line!r}")
            else:
                said[number].append(word.what)
    if task.status is TaskStatus.COMPLETED:
        number = task.attempts[-1].number
        if said[number] != ["begin", "end"]:
            yield Violation("P6", f"the winning attempt {number} of task {task.id} printed {said[number]}")


def _check_containers(facts: Facts, containers: Mapping[str, Story]) -> Iterator[Violation]:
    """P2 and P6: each container was used by one attempt at most, and each attempt had one, if it ran."""
    attempts = {(task.id, attempt.number): attempt for task in facts.tasks for attempt in task.attempts}
    started: defaultdict[AttemptKey, list[str]] = defaultdict(list)
    for story in containers.values():
        if len(story.attempts) > 1:
            those = ", ".join(map(_render, sorted(story.attempts)))
            yield Violation("P2", f"container {story.container_id} was used by {those}")
        for key in story.attempts:
            if key not in attempts:
                yield Violation("P6", f"container {story.container_id} was of {_render(key)}: not known")
            if story.started_at is not None:
                started[key].append(story.container_id)
    for key, ids in started.items():
        if len(ids) > 1:
            yield Violation("P2", f"{_render(key)} ran in {len(ids)} containers")
    for key, attempt in attempts.items():
        if attempt.reason in _RAN and not started[key]:
            yield Violation("P2", f"{_render(key)} is {attempt.reason}, and no container ran")


def _check_words(containers: Mapping[str, Story]) -> Iterator[Violation]:
    """P2: no container was given a second job; each was where its agent says that it was."""
    for story in containers.values():
        begun = sum(word.what == "begin" for word in story.words)
        if begun > 1:
            yield Violation("P2", f"in container {story.container_id} {begun} agents began")
        for word in story.foreign:
            yield Violation(
                "P2", f"container {story.container_id} was heard to be {word.container_id}, {word}"
            )


def _check_overlap(facts: Facts, seen: Sequence[Run]) -> Iterator[Violation]:
    """P3: no agent runs more often at once than its policy allows; see `tests.torture.evidence.Run`.

    An attempt that was stopped before its agent's first word is none: its container stays for a moment with nothing in it.
    But what became of one that was given up as lost its container alone tells.
    """
    judged = {
        (task.id, attempt.number)
        for task in facts.tasks
        for attempt in task.attempts
        if attempt.reason not in (None, Reason.LOST)
    }
    agent_of = {task.id: task.agent_id for task in facts.tasks}
    allowed = {agent.agent_id: agent.max_active for agent in facts.agents}
    running: defaultdict[int, list[Run]] = defaultdict(list)
    for run in sorted(seen, key=lambda run: run.began_at):
        agent_id = agent_of.get(run.attempt[0])
        if agent_id is None:
            continue  # Reported as unknown elsewhere.
        if run.is_silent and run.attempt in judged:
            continue
        held = running[agent_id]
        held[:] = [one for one in held if one.ended_at is None or one.ended_at > run.began_at]
        held.append(run)
        if len(held) > allowed[agent_id]:
            those = ", ".join(_render(one.attempt) for one in held)
            yield Violation("P3", f"agent {agent_id} runs {len(held)} at once at {run.began_at}: {those}")


def _check_orphans(facts: Facts, containers: Mapping[str, Story]) -> Iterator[Violation]:
    """P7: a container that was made to wait, and all that runs in it, ends when its owner does."""
    last_at = max((sight.at for sight in facts.sights), default=None)
    for story in containers.values():
        if story.owner is None or story.started_at is None or last_at is None:
            continue
        _host, process_id, _token = story.owner.rsplit(":", 2)
        # Numbers are used again, but not before they are free.
        deaths = [
            end.at
            for end in facts.ended
            if str(end.process_id) == process_id and end.at >= story.known_at - _CLOCKS_DIFFER
        ]
        if not deaths:
            continue
        died_at, ended_at = min(deaths), story.ended_at or last_at
        away = sum((_common(died_at, ended_at, *outage) for outage in facts.engine_away), timedelta())
        if ended_at - died_at - away > ORPHANED:
            late = (ended_at - died_at).total_seconds()
            yield Violation("P7", f"container {story.container_id} outlived its owner by {late:.1f} s")


def _common(begin: datetime, end: datetime, other_begin: datetime, other_end: datetime) -> timedelta:
    """Return how long two spans lie one upon the other."""
    return max(min(end, other_end) - max(begin, other_begin), timedelta())


def _render(key: AttemptKey) -> str:
    return f"task {key[0]} attempt {key[1]}"


def lateness(facts: Facts) -> list[float]:
    """Return, in rising order, the seconds from a fire to the begin of its first attempt, where nothing held it back.

    Left out: agents with jitter, and tasks that were not made at once (caught up) or had to wait for a slot.
    """
    puts_off = {agent.agent_id for agent in facts.agents if agent.rule.get("jitter_seconds")}
    tasks_of: defaultdict[int, list[Task]] = defaultdict(list)
    for task in facts.tasks:
        tasks_of[task.agent_id].append(task)
    late = []
    for agent_id, tasks in tasks_of.items():
        if agent_id in puts_off:
            continue
        for task in tasks:
            if not task.attempts or task.fire_at is None:
                continue
            waits = any(_was_active(other, task.created_at) for other in tasks if other is not task)
            if not waits:
                late.append((task.attempts[0].started_at - task.fire_at).total_seconds())
    return sorted(late)
