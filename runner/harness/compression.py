"""Turns a run's output into the next run's state: the step SUMMARIZE of the loop.

An agent that does not call `handoff.save` still gets a memory: what it says in *state lines*, and a short digest of its
latest outputs. The result is bounded, whatever the agent writes, however often it runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import InvalidInputError, StateRejectedError
from harness.jsontext import decode_document, encode_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Starts a state line: ``HANDOFF_STATE {"cursor": 17}``. See `DigestCompressor`.
STATE_LINE_PREFIX = "HANDOFF_STATE "

#: Reserved key of the state: digests of the latest outputs, oldest first.
RECENT_OUTPUTS_KEY = "_recent_outputs"

#: Reserved key of the state: how many outputs were digested before those, and are forgotten.
DROPPED_OUTPUTS_KEY = "_dropped_outputs"

_RESERVED_KEYS = frozenset({RECENT_OUTPUTS_KEY, DROPPED_OUTPUTS_KEY})

#: Digests kept. With the two lengths below they take at most 60,000 bytes of JSON, and 15,000 of plain English.
MAX_RECENT_OUTPUTS = 10
#: The last lines weigh more: there stand the result and the traceback.
_HEAD_CHARS = 400
_TAIL_CHARS = 800

#: Work on a longer output goes to a thread, so that the event loop keeps prolonging leases meanwhile.
_MAX_INLINE_CHARS = 256 * 1024

#: Largest integer that every JSON reader holds exactly.
_MAX_COUNT = 2**53 - 1

#: ECMA-48: control sequences, control strings (titles, hyperlinks), and the other escape sequences.
_ESCAPE_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[ -/]*[0-~]"
)
#: Control characters but tab and newline, what turns the direction of text or ends a line unseen, lone surrogates.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class Compressor(Protocol):
    """Makes a state out of a run's output. Give your own to `harness.handoff.HandoffManager`.

    It may ask a language model; it should be quick to cancel, and must not change `previous_state`.
    """

    async def compress(
        self, *, agent_id: int, raw_output: str, previous_state: dict[str, Any], max_bytes: int
    ) -> dict[str, Any]:
        """Return the next state.

        Args:
            agent_id: Whose output it is.
            raw_output: The run's standard output, perhaps cut by the output limit.
            previous_state: The state the run began with.
            max_bytes: Bound on the result's size as compact JSON in UTF-8. A larger result is refused.
        """


class DigestCompressor:
    r"""The default: state lines win, and a rolling digest remembers the rest.

    **State lines.** A line that starts with ``HANDOFF_STATE {`` (capitals, one blank, at the line's very beginning) is
    a state line; from the brace to its end it must be one JSON object, or the run's state is rejected. No other line
    is ever taken for state. A bare JSON object, even one with a ``state`` key, is what programs log all day long; the
    prefix makes it a decision, any language can print it, and a mistake in it is an error and not a silent loss.

    The objects are merged in order over the previous state: a top-level key is replaced as a whole, a key that no line
    mentions stays. Lines end at ``\n`` (or ``\r\n``).

    **Digest.** When the output has other text, an entry is added to ``_recent_outputs``: ``number`` (counts such
    outputs, from 1), ``digest`` (first and last lines, escape sequences and control characters made harmless),
    ``lines``, ``bytes`` and ``sha256`` of the whole output. The latest ten are kept; ``_dropped_outputs`` says how
    many came before them. Both keys are reserved: what a state line says under them is ignored.

    **Bound.** When the state would be too large, the oldest digests are dropped first, and counted. An explicit state
    that is too large by itself is rejected, never cut.

    Deterministic: the same output and previous state give the same result. Linear in the length of the output.
    """

    async def compress(
        self,
        *,
        agent_id: int,  # noqa: ARG002 - part of the protocol; all agents are alike here
        raw_output: str,
        previous_state: dict[str, Any],
        max_bytes: int,
    ) -> dict[str, Any]:
        """Return the next state; see the class.

        Raises:
            StateRejectedError: A state line is malformed, or the explicit state is larger than `max_bytes`.
        """
        if len(raw_output) > _MAX_INLINE_CHARS:
            return await asyncio.to_thread(_next_state, raw_output, previous_state, max_bytes)
        return _next_state(raw_output, previous_state, max_bytes)


def encode_state(state: object, *, max_bytes: int, what: str = "state") -> str:
    """Encode a handoff state as canonical JSON, within its bound.

    Raises:
        StateRejectedError: Naming the value at fault or the size, and the remedy.
    """
    text, size = _encode(state, what)
    if size > max_bytes:
        raise StateRejectedError(
            f"{what} is {size:,} bytes of JSON, more than the limit of {max_bytes:,} bytes; keep less in it, or raise "
            "limits.max_state_bytes in the agent's config (HARNESS_MAX_STATE_BYTES for all agents)"
        )
    return text


def _encode(state: object, what: str) -> tuple[str, int]:
    try:
        text = encode_document(state, what=what)
    except InvalidInputError as error:
        raise StateRejectedError(error.message) from error
    return text, len(text.encode())


def _next_state(raw_output: str, previous_state: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    explicit = {key: value for key, value in previous_state.items() if key not in _RESERVED_KEYS}
    text_parts = []
    text_start = 0
    for start, end in _find_state_lines(raw_output):
        change = _parse_state_line(raw_output, start, end, max_bytes)
        explicit.update((key, value) for key, value in change.items() if key not in _RESERVED_KEYS)
        text_parts.append(raw_output[text_start:start])
        text_start = end + 1
    text_parts.append(raw_output[text_start:])
    text = "".join(text_parts).strip()

    encode_state(explicit, max_bytes=max_bytes, what="the state without its output digests")
    outputs = _RecentOutputs.of(previous_state)
    if text:
        outputs = outputs.add(text, raw_output)
    return _fit(explicit, outputs, max_bytes)


def _find_state_lines(output: str) -> Iterator[tuple[int, int]]:
    """Yield where state lines start and end. By `str.find`: a regex anchored to lines is ten times slower."""
    mark = STATE_LINE_PREFIX + "{"
    start = output.find(mark)
    while start != -1:
        end = output.find("\n", start)
        end = len(output) if end == -1 else end
        if start == 0 or output[start - 1] == "\n":
            yield start, end
        start = output.find(mark, end)


def _parse_state_line(output: str, start: int, end: int, max_bytes: int) -> dict[str, Any]:
    try:
        return decode_document(
            output[start + len(STATE_LINE_PREFIX) : end],
            what="the object of HANDOFF_STATE",
            max_bytes=max_bytes,
        )
    except InvalidInputError as error:
        number = output.count("\n", 0, start) + 1
        cut = "; the output ends in this line, perhaps by its limit" if end == len(output) else ""
        raise StateRejectedError(
            f"line {number:,} of the output: {error.message}; print 'HANDOFF_STATE ' and one JSON object on one line"
            f"{cut}"
        ) from error


@dataclass(frozen=True, slots=True)
class _RecentOutputs:
    entries: tuple[dict[str, Any], ...]
    dropped: int

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> _RecentOutputs:
        """Read the reserved keys. What is no entry was put there by somebody else, and is left behind."""
        stored = state.get(RECENT_OUTPUTS_KEY)
        entries = [entry for entry in stored if _is_entry(entry)] if isinstance(stored, list) else []
        return cls(tuple(entries), _count(state.get(DROPPED_OUTPUTS_KEY))).keep_last(MAX_RECENT_OUTPUTS)

    def add(self, text: str, raw_output: str) -> _RecentOutputs:
        last = max((entry["number"] for entry in self.entries), default=0)
        data = raw_output.encode(errors="surrogatepass")
        entry = {
            "number": min(max(last, self.dropped + len(self.entries)) + 1, _MAX_COUNT),
            "digest": _excerpt(text),
            "lines": raw_output.count("\n") + (not raw_output.endswith("\n")),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        return _RecentOutputs((*self.entries, entry), self.dropped).keep_last(MAX_RECENT_OUTPUTS)

    def keep_last(self, count: int) -> _RecentOutputs:
        surplus = max(len(self.entries) - count, 0)
        return _RecentOutputs(self.entries[surplus:], min(self.dropped + surplus, _MAX_COUNT))

    def as_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.entries:
            state[RECENT_OUTPUTS_KEY] = list(self.entries)
        if self.dropped:
            state[DROPPED_OUTPUTS_KEY] = self.dropped
        return state


def _count(value: object) -> int:
    """Return a stored count; 0 for anything else, `True` included."""
    return value if type(value) is int and 0 < value <= _MAX_COUNT else 0


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, dict) and _count(value.get("number")) > 0 and isinstance(value.get("digest"), str)
    )


def _fit(explicit: dict[str, Any], outputs: _RecentOutputs, max_bytes: int) -> dict[str, Any]:
    for kept in range(len(outputs.entries), -1, -1):
        state = explicit | outputs.keep_last(kept).as_state()
        _, size = _encode(state, "state")
        if size <= max_bytes:
            return state
    # Not even the count of what was dropped finds room beside the explicit state.
    return explicit


def _excerpt(text: str) -> str:
    if len(text) <= _HEAD_CHARS + _TAIL_CHARS:
        return _neutralise(text)
    head, tail = text[:_HEAD_CHARS], text[-_TAIL_CHARS:]
    # Whole lines read better, where there are any.
    head = head.rpartition("\n")[0] or head
    tail = tail.partition("\n")[2] or tail
    left_out = len(text) - len(head) - len(tail)
    return f"{_neutralise(head)}\n[… {left_out:,} characters left out …]\n{_neutralise(tail)}"


def _neutralise(text: str) -> str:
    text = _ESCAPE_SEQUENCES.sub("", text)
    # A lone carriage return is a progress bar overwriting its line.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub("\ufffd", text)
