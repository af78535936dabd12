"""What the facts say of containers and runs, by the engine's word and the agents' own, never by the product's records.

A container is given to an attempt by its labels, or, where it waited for one, by the name that it gets a moment later.
A run that is over before that gives no name to its container, so agents also say themselves where and when they run:
``begin TASK ATTEMPT CONTAINER TIME`` at first, ``end`` with the same at last. These lines come through the product's
logs, and past it (`tests.torture.listener`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, cast

from tests.torture.facts import AttemptKey, ContainerSeen, EngineSeen, Facts

from harness.models import log_attempt

_LINE = re.compile(r"(begin|end) (\d+) (\d+) ([0-9a-f]{64}) (\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class Word:
    """A line of an agent."""

    what: Literal["begin", "end"]
    attempt: AttemptKey
    container_id: str
    at: datetime


@dataclass(slots=True)
class Story:
    """One container's."""

    container_id: str
    #: By its labels, of one that was made to wait.
    owner: str | None
    #: When the engine first told of it.
    known_at: datetime
    started_at: datetime | None = None
    #: When its name or its labels first gave it to an attempt.
    given_at: datetime | None = None
    was_adapted: bool = False
    ended_at: datetime | None = None
    #: All that it was given to, whoever says so.
    attempts: set[AttemptKey] = field(default_factory=set)
    words: set[Word] = field(default_factory=set)
    #: Words that were heard from it, and name another container.
    foreign: set[Word] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Run:
    """An attempt in a container, from its agent's first word to its last; by the engine's events where it said none."""

    attempt: AttemptKey
    container_id: str
    began_at: datetime
    #: None: it was not seen to end.
    ended_at: datetime | None
    #: No word came through, neither by the product nor past it.
    is_silent: bool


def read_word(line: str) -> Word | None:
    """Return what a line of an agent says; None: it is none."""
    if (match := _LINE.fullmatch(line)) is None:
        return None
    what, task_id, number, container_id, seconds = match.groups()
    at = datetime.fromtimestamp(float(seconds), UTC)
    return Word(cast("Literal['begin', 'end']", what), (int(task_id), int(number)), container_id, at)


def printed(facts: Facts, task_id: int) -> dict[int, str]:
    """Return what each attempt of a task wrote to stdout, by the product's logs."""
    texts: defaultdict[int, bytearray] = defaultdict(bytearray)
    for chunk in facts.logs.get(task_id, ()):
        if chunk.stream == "stdout":
            texts[log_attempt(chunk.seq)] += chunk.data
    return {number: text.decode(errors="replace") for number, text in texts.items()}


def stories(facts: Facts) -> dict[str, Story]:
    """Return what is known of each container, by its id."""
    found: dict[str, Story] = {}
    for sight in facts.sights:
        if isinstance(sight, ContainerSeen):
            story = found.setdefault(
                sight.container_id, Story(sight.container_id, sight.owner, known_at=sight.at)
            )
            _take(story, sight)
    # At the end of all sights, since those from after a break of the stream may be told once more.
    for sight in facts.sights:
        if isinstance(sight, EngineSeen):
            for story in found.values():
                was_there = story.started_at is not None and story.started_at <= sight.at
                if was_there and story.container_id not in sight.running:
                    story.ended_at = min(story.ended_at or sight.at, sight.at)
    for source, word in _words(facts):
        # One that the engine never told of is known by its agent's words alone.
        story = found.setdefault(word.container_id, Story(word.container_id, None, known_at=word.at))
        story.attempts.add(word.attempt)
        story.words.add(word)
        if source not in (None, word.container_id) and source in found:
            found[source].foreign.add(word)
    return found


def _take(story: Story, sight: ContainerSeen) -> None:
    story.known_at = min(story.known_at, sight.at)
    if sight.attempt is not None:
        story.attempts.add(sight.attempt)
        story.given_at = min(story.given_at or sight.at, sight.at)
    if sight.action == "start":
        story.started_at = min(story.started_at or sight.at, sight.at)
    elif sight.action == "update":
        story.was_adapted = True
    elif sight.action in ("die", "destroy"):
        story.ended_at = min(story.ended_at or sight.at, sight.at)


def _words(facts: Facts) -> Iterator[tuple[str | None, Word]]:
    """Yield each word with the container that it was heard from; None: it came through the product."""
    for task_id in facts.logs:
        for text in printed(facts, task_id).values():
            for line in text.splitlines():
                if (word := read_word(line)) is not None:
                    yield None, word
    for container_id, text in facts.heard.items():
        for match in _LINE.finditer(text):
            if (word := read_word(match[0])) is not None:
                yield container_id, word


def runs(containers: dict[str, Story]) -> Iterator[Run]:
    """Yield all runs there were, as far as anybody knows of them."""
    for story in containers.values():
        for attempt in story.attempts:
            if story.started_at is None and not story.words:
                continue
            words = {
                what: [word.at for word in story.words if (word.what, word.attempt) == (what, attempt)]
                for what in ("begin", "end")
            }
            given_at = story.started_at if story.owner is None else story.given_at
            began_at = min(words["begin"] or words["end"] or [given_at or story.known_at])
            ended_at = max(words["end"], default=story.ended_at)
            yield Run(attempt, story.container_id, began_at, ended_at, is_silent=not any(words.values()))


def origins(containers: dict[str, Story]) -> Counter[str]:
    """Return how many containers of attempts were waiting, were adapted, or were made anew."""
    counts: Counter[str] = Counter()
    for story in containers.values():
        if story.started_at is None:
            continue
        if not story.attempts:
            counts["never used"] += 1
        elif story.owner is None:
            counts["cold"] += 1
        else:
            counts["adapted" if story.was_adapted else "warm"] += 1
    return counts
