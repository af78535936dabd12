"""Who gets a slot, and whose turn it is: pure decisions, shared by both stores.

An agent's slots are names, ``agent_id:1`` to ``agent_id:max_active``, and a name is unique in the store: so the number
of tasks that hold one is bounded by the database itself, whoever writes at the same moment. A decision made here on
what was read just before is a proposal; the unique name decides.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import InvalidInputError
from harness.models import Claim, FirePlan, NewTask, ScheduleState, SkipReason, WhenBusy

#: Candidates looked at beyond a claim's limit, for those that somebody else takes first or that can't be read.
SPARE_CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where a new task goes: into a slot, to the end as skipped, or to wait (in the agent's one queue place, or not)."""

    active_slot: str | None = None
    queue_slot: str | None = None
    skip_reason: SkipReason | None = None


def queue_slot(agent_id: int) -> str:
    """Return the name of an agent's one place in the queue."""
    return str(agent_id)


def free_slot(agent_id: int, max_active: int, taken: Collection[str]) -> str | None:
    """Return the lowest free slot, or None.

    Args:
        agent_id: The agent.
        max_active: How many tasks may hold a slot.
        taken: Every slot of the agent that is held; also those past `max_active`, from when it was higher: they count.
    """
    if len(taken) >= max_active:
        return None
    numbers = range(1, max_active + 1)
    return next(name for number in numbers if (name := f"{agent_id}:{number}") not in taken)


def slot_for_new(agent_id: int, max_active: int, taken: Collection[str], *, waiting: int) -> str | None:
    """Return a free slot that no task waits for, or None: those that wait must not be overtaken between two claims.

    Args:
        agent_id: The agent.
        max_active: How many tasks may hold a slot.
        taken: As for `free_slot`.
        waiting: How many of the agent's tasks wait for a slot.
    """
    return free_slot(agent_id, max_active - waiting, taken) if waiting < max_active else None


def find_place(new: NewTask, taken: Collection[str], *, is_waited: bool, waiting: int) -> Place | None:
    """Return where a new task goes; None when it has to be refused.

    Args:
        new: The task.
        taken: Every slot of its agent that is held.
        is_waited: Whether a task is in the agent's place in the queue.
        waiting: How many of the agent's tasks wait for a slot, that one included.
    """
    if new.skip_reason is not None:
        return Place(skip_reason=new.skip_reason)
    if is_waited and new.when_busy in (WhenBusy.QUEUE, WhenBusy.REPLACE):
        return Place(skip_reason=SkipReason.OVERLAP)
    if slot := slot_for_new(new.agent_id, new.max_active, taken, waiting=waiting):
        return Place(active_slot=slot)
    match new.when_busy:
        case WhenBusy.REJECT:
            return None
        case WhenBusy.WAIT:
            return Place()
        case WhenBusy.QUEUE | WhenBusy.REPLACE:
            return Place(queue_slot=queue_slot(new.agent_id))
    return Place(skip_reason=SkipReason.OVERLAP)


def check_new(new: NewTask, claim: Claim | None) -> None:
    """Refuse a claim on a task that may not get to run.

    Raises:
        InvalidInputError: Naming what contradicts the claim.
    """
    if claim is not None and (new.when_busy is not WhenBusy.REJECT or new.skip_reason is not None):
        what = "is stored as skipped" if new.skip_reason else f"has when_busy={new.when_busy.value!r}"
        raise InvalidInputError(
            f"a task that {what} cannot be claimed with its creation; leave the claim out, or use "
            "WhenBusy.REJECT"
        )


def check_plan(plan: FirePlan) -> FirePlan:
    """Return a plan fit to be carried out: a fire is never refused, so a busy agent turns it into a skip.

    Raises:
        InvalidInputError: A task is another agent's, or has no `fire_at`, by which a repeated insert is recognised.
    """
    for new in plan.tasks:
        if new.agent_id != plan.before.agent_id or new.fire_at is None:
            raise InvalidInputError(
                f"a plan for agent {plan.before.agent_id} has a task of agent {new.agent_id} with fire_at "
                f"{new.fire_at}; a plan's tasks are its agent's own, and each has a fire_at"
            )
    if all(new.when_busy is not WhenBusy.REJECT for new in plan.tasks):
        return plan
    tasks = (
        new.model_copy(update={"when_busy": WhenBusy.SKIP}) if new.when_busy is WhenBusy.REJECT else new
        for new in plan.tasks
    )
    return plan.model_copy(update={"tasks": tuple(tasks)})


def check_skips(states: Iterable[ScheduleState], skips: Sequence[NewTask]) -> Sequence[NewTask]:
    """Return skips fit to be stored with the schedules that they are of.

    Raises:
        InvalidInputError: One is of another agent, is none, or has no `fire_at`.
    """
    agent_ids = {state.agent_id for state in states}
    for new in skips:
        if new.agent_id not in agent_ids or new.fire_at is None or new.skip_reason is None:
            raise InvalidInputError(
                f"a fire of agent {new.agent_id} at {new.fire_at} can't be stored with the schedules of agents "
                f"{sorted(agent_ids)}: each is of one of them, and has a fire_at and a skip_reason"
            )
    return skips


class Candidate(NamedTuple):
    """A pending task whose time has come. Candidates compare in the order in which one agent's tasks are taken."""

    #: Negated, so that higher comes first.
    minus_priority: int
    #: Milliseconds since 1970.
    due_at: int
    task_id: int
    agent_id: int
    #: None: it waits for a slot.
    active_slot: str | None
    max_active: int


class Holder(NamedTuple):
    """A task that holds a slot."""

    agent_id: int
    active_slot: str
    is_running: bool


def order_of_claims(
    candidates: Iterable[Candidate], holders: Iterable[Holder], *, limit: int
) -> list[Candidate]:
    """Return the candidates to be claimed, in order, each with its slot; one that finds no free slot is left out.

    Args:
        candidates: Those there are.
        holders: At least those of the candidates' agents that run; and, of agents with a candidate that waits, all.
        limit: How many at most.
    """
    taken: defaultdict[int, set[str]] = defaultdict(set)
    running: Counter[int] = Counter()
    for holder_of, held_slot, is_running in holders:
        taken[holder_of].add(held_slot)
        running[holder_of] += is_running
    turns: Counter[tuple[int, int]] = Counter()
    ranked: list[tuple[int, int, int, int, int, Candidate]] = []
    for candidate in sorted(candidates):
        minus_priority, due_at, task_id, agent_id, slot, max_active = candidate
        if len(ranked) >= limit and minus_priority != ranked[-1][0]:
            # Enough of higher priorities.
            break
        if slot is None:
            slot = free_slot(agent_id, max_active, taken[agent_id])
            if slot is None:
                continue
            taken[agent_id].add(slot)
            candidate = candidate._replace(active_slot=slot)  # noqa: PLW2901 - the same one, with its slot
        turn = turns[agent_id, minus_priority]
        turns[agent_id, minus_priority] = turn + 1
        ranked.append((minus_priority, turn, running[agent_id], due_at, task_id, candidate))
    return [rank[-1] for rank in heapq.nsmallest(limit, ranked)]
