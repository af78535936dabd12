"""What of an agent's history is to go, and when. Pure: `harness.purging` does it.

Whatever the policy, nothing goes that ended less than `MIN_AGE` ago. Whoever repeats a write whose answer was lost, a
store that finishes what another process began, and a person who looks after a run, all find what they look for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self, TypeVar

from harness.config import RetentionConfig
from harness.settings import Settings

#: What ended or was saved later than this stays.
MIN_AGE = timedelta(hours=1)

NumberT = TypeVar("NumberT", int, float)


@dataclass(frozen=True, slots=True)
class Expiry:
    """What of one agent's history is to go, by the store's clock. None: nothing goes for that reason."""

    #: Nothing that ended or was saved since then goes, whatever else is said; no other instant here is later.
    before: datetime
    #: Tasks that ended before then go.
    tasks_before: datetime | None = None
    #: Of all its tasks those past this many, counted from the newest, go once they have ended.
    max_tasks: int | None = None
    #: Logs of tasks that ended before then go.
    logs_before: datetime | None = None
    #: Artifacts that were saved before then go, but never the newest.
    artifacts_before: datetime | None = None
    #: Of its artifacts those past this many, counted from the newest, go; at least 1.
    max_artifacts: int | None = None


@dataclass(frozen=True, slots=True)
class Purged:
    """What one purge deleted, or would delete."""

    #: Tasks, with their logs.
    tasks: int = 0
    #: Tasks that ran and are kept, and whose logs went.
    logs: int = 0
    artifacts: int = 0
    #: Whether it stopped at its limit, so that there may be more.
    more: bool = False

    def __add__(self, other: Purged) -> Purged:
        """Return both together; there may be more if the second one says so."""
        return Purged(
            self.tasks + other.tasks, self.logs + other.logs, self.artifacts + other.artifacts, other.more
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was deleted."""
        return not (self.tasks or self.logs or self.artifacts)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept, all of it said; 0 keeps everything. The fields are those of `RetentionConfig`."""

    task_days: float = 0
    max_tasks: int = 0
    log_days: float = 0
    artifact_days: float = 0
    max_artifacts: int = 0

    @classmethod
    def by_settings(cls, settings: Settings) -> Self:
        """Return what holds for agents that say nothing themselves."""
        return cls(
            task_days=settings.retention_task_days,
            max_tasks=settings.retention_max_tasks,
            log_days=settings.retention_log_days,
            artifact_days=settings.retention_artifact_days,
            max_artifacts=settings.retention_max_artifacts,
        )

    def overridden(self, config: RetentionConfig) -> Retention:
        """Return this with what an agent says for itself."""
        return Retention(
            task_days=_first(config.task_days, self.task_days),
            max_tasks=_first(config.max_tasks, self.max_tasks),
            log_days=_first(config.log_days, self.log_days),
            artifact_days=_first(config.artifact_days, self.artifact_days),
            max_artifacts=_first(config.max_artifacts, self.max_artifacts),
        )

    def expiry(self, now: datetime) -> Expiry:
        """Return what is to go at `now`, by the store's clock."""
        return Expiry(
            before=now - MIN_AGE,
            tasks_before=_before(now, self.task_days),
            max_tasks=self.max_tasks or None,
            logs_before=_before(now, self.log_days),
            artifacts_before=_before(now, self.artifact_days),
            max_artifacts=self.max_artifacts or None,
        )


def _first(own: NumberT | None, default: NumberT) -> NumberT:
    return default if own is None else own


def _before(now: datetime, days: float) -> datetime | None:
    return now - max(timedelta(days=days), MIN_AGE) if days else None
