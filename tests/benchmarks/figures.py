"""What benchmarks find: rows of figures, each beside something measured in the same run, and the goals they are held to.

Pure. Rows go by a name that JSON and later versions of the documents rely on; how they are shown is in `report`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing."""

    name: str
    #: Of the values: ms, runs/s, MiB …
    unit: str
    #: The median, or the only value where `count` is 1.
    p50: float
    p95: float | None = None
    p99: float | None = None
    #: Values behind the percentiles. With few of them the high percentiles are the highest value.
    count: int = 1
    #: The median beside that of another row of the same run, which `beside` names.
    ratio: float | None = None
    beside: str | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound and what was measured. None: this version or this machine can't be measured for it; `Found.notes` say why."""

    what: str
    measured: float | None
    bound: float
    unit: str = ""
    #: Otherwise it is a lower bound.
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """``met``, ``not met`` or ``not measured``."""
        if self.measured is None:
            return "not measured"
        is_met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return "met" if is_met else "not met"


@dataclass(slots=True)
class Found:
    """What one group of benchmarks found."""

    group: str
    title: str
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    #: What has to be known to read the rows.
    notes: list[str] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed; the highest where they are too few to tell."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(name: str, unit: str, values: Sequence[float], *, beside: Row | None = None) -> Row:
    """Summarise values, their median beside another row's."""
    median = statistics.median(values)
    many = len(values) > 1
    return Row(
        name,
        unit,
        round(median, 3),
        round(percentile(values, 0.95), 3) if many else None,
        round(percentile(values, 0.99), 3) if many else None,
        len(values),
        None if beside is None else round(median / beside.p50, 4),
        None if beside is None else beside.name,
    )


def milliseconds(name: str, seconds: Sequence[float], *, beside: Row | None = None) -> Row:
    """Summarise a series of durations."""
    return row(name, "ms", [value * 1000 for value in seconds], beside=beside)
