"""`Decision`: what was decided about one connection that an agent asked for. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What became of a connection."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    #: It was allowed, and there was nothing to connect to.
    FAILED = "failed"
    #: There is no way out any more, for this run.
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision about one connection, or the end of all. All of it is safe to show: a host was checked, or stands here as ASCII."""

    verdict: Verdict
    #: ``host:port``, or as much of a malformed request as is fit to be shown.
    place: str
    #: What was connected to, or why it was not; None where it was not looked up.
    address: str | None = None
    #: Why, for people; empty where it was allowed.
    why: str = ""


#: Told each decision, from the event loop; must not block.
OnDecision = Callable[[Decision], None]
