"""What was seen of one run of the oracle test; plain data, so that the checker is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from harness.models import HandoffArtifact, LogChunk, ScheduleState, Task

#: Task id and number.
AttemptKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ContainerSeen:
    """One line of the engine's own event stream."""

    action: Literal["create", "start", "update", "rename", "die", "destroy"]
    container_id: str
    #: Whose it is, by its labels or by the name that it has by now; None: it waits, or waited, for a task.
    attempt: AttemptKey | None
    #: The owner that its labels name, of one that was made to wait.
    owner: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class EngineSeen:
    """The event stream broke off, and the engine answers again: what does not run now has ended, told or not."""

    running: frozenset[str]
    #: When it did not answer yet.
    at: datetime


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """A process of the product ended, however it did."""

    process_id: int
    at: datetime


Sight = ContainerSeen | EngineSeen


@dataclass(frozen=True, slots=True)
class Switched:
    """The test turned a schedule off or on, by the product's own call; it came into force between these two times."""

    is_on: bool
    began_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class AgentSeen:
    """An agent as the test made it, and what the store says about it in the end."""

    agent_id: int
    config: Mapping[str, object]
    schedule: ScheduleState
    #: By rising version.
    artifacts: Sequence[HandoffArtifact]
    newest: HandoffArtifact | None
    #: In their order: off, on, off, …
    switched: Sequence[Switched] = field(default_factory=tuple)

    @property
    def rule(self) -> Mapping[str, object]:
        """The schedule's config."""
        rule = self.config["schedule"]
        assert isinstance(rule, dict)
        return rule

    @property
    def max_active(self) -> int:
        """How many of its containers may run at once."""
        number = self.rule.get("max_overlap", 5) if self.rule.get("overlap") == "allow" else 1
        assert isinstance(number, int)
        return number


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the checker judges by."""

    agents: Sequence[AgentSeen]
    #: The store's tasks, by rising id.
    tasks: Sequence[Task]
    logs: Mapping[int, Sequence[LogChunk]]
    sights: Sequence[Sight]
    #: What containers wrote to stdout, as far as the test's own attachments came in time; by container id.
    heard: Mapping[str, str] = field(default_factory=dict)
    ended: Sequence[ProcessEnded] = field(default_factory=tuple)
    #: From when to when the test had stopped or frozen the engine.
    engine_away: Sequence[tuple[datetime, datetime]] = field(default_factory=tuple)
    #: Containers that bear the store's label, after the quiet period.
    containers_left: Sequence[str] = field(default_factory=tuple)
    #: How long after the time that it bears a write may come into force, its process having been frozen in between.
    #: None at all where times are taken under a lock.
    stamp_slack: timedelta = timedelta()
