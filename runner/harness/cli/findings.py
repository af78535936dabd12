"""What a check of `harness doctor` comes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CheckStatus(StrEnum):
    """How a check ended."""

    OK = "ok"
    #: Runs work; something about them should be looked at.
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One finding."""

    name: str
    status: CheckStatus
    #: What was found, what is wrong, or why the check was left out.
    detail: str
    #: What to do about a problem or a warning.
    remedy: str | None = None
    duration_seconds: float = 0.0


class ProblemError(Exception):
    """A check found a problem."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class WorryError(Exception):
    """A check found something that does not keep runs from working."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class NotNeededError(Exception):
    """A check has nothing to look at; the message says why."""
