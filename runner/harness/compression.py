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
    from collections.abc import Mapping

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
#: A text up to this length is kept whole.
_SHORT_CHARS = _HEAD_CHARS + _TAIL_CHARS

_STATE_MARK = STATE_LINE_PREFIX + "{"

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
        digest = OutputDigest(previous_state, max_bytes)
        await digest.take(raw_output)
        return digest.finish()


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


class OutputDigest:
    """What `DigestCompressor` does, on an output that comes in pieces, with the memory of one piece.

    However the output is cut, the state is the same.
    """

    def __init__(self, previous_state: Mapping[str, Any], max_bytes: int) -> None:
        """Begin with the state that the run began with; `max_bytes` bounds the next one."""
        self._explicit = {key: value for key, value in previous_state.items() if key not in _RESERVED_KEYS}
        self._outputs = _RecentOutputs.of(previous_state)
        self._max_bytes = max_bytes
        self._text = _Stripped()
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        #: Line ends so far.
        self._lines = 0
        #: A line that is, or may become, a state line.
        self._begun = ""
        #: Whether the next piece continues no other line than that.
        self._at_line_start = True

    async def take(self, text: str) -> None:
        """Take the next piece as `feed` does, a long one in a thread."""
        if len(text) > _MAX_INLINE_CHARS:
            await asyncio.to_thread(self.feed, text)
        else:
            self.feed(text)

    def feed(self, text: str) -> None:
        """Take the next piece.

        Raises:
            StateRejectedError: A state line is malformed, or larger than the bound.
        """
        if not text:
            return
        data = text.encode(errors="surrogatepass")
        self._sha256.update(data)
        self._bytes += len(data)
        text = self._begun + text
        self._begun = ""
        # By `str.find`: a regex anchored to lines is ten times slower.
        text_start, found = 0, text.find(_STATE_MARK)
        while found != -1:
            end = text.find("\n", found)
            if self._at_line_start if found == 0 else text[found - 1] == "\n":
                if end == -1:
                    break
                self._take_state_line(text, found, end)
                self._text.add(text[text_start:found])
                text_start = end + 1
            if end == -1:
                found = -1
                break
            found = text.find(_STATE_MARK, end)
        begun_at = self._find_begun(text) if found == -1 else found
        self._lines += text.count("\n")
        self._begun = text[begun_at:]
        self._at_line_start = begun_at < len(text) or text.endswith("\n")
        self._text.add(text[text_start:begun_at])
        if len(self._begun) > len(_STATE_MARK) + self._max_bytes:
            # Too large already, whatever else it says.
            self._take_state_line(self._begun, 0, len(self._begun))

    def finish(self, *, is_cut: bool = False) -> dict[str, Any]:
        """Return the next state.

        Args:
            is_cut: The output goes on, beyond its cap: half a line of state is none.

        Raises:
            StateRejectedError: The last line is a malformed state line, or the explicit state is too large.
        """
        if not self._begun.startswith(_STATE_MARK):
            self._text.add(self._begun)
        elif not is_cut:
            self._take_state_line(self._begun, 0, len(self._begun), is_last=True)
        encode_state(self._explicit, max_bytes=self._max_bytes, what="the state without its output digests")
        outputs = self._outputs
        if self._text.length:
            ends_in_line = bool(self._begun) or not self._at_line_start
            outputs = outputs.add(
                digest=self._text.excerpt(),
                lines=self._lines + ends_in_line,
                size_bytes=self._bytes,
                sha256=self._sha256.hexdigest(),
            )
        return _fit(self._explicit, outputs, self._max_bytes)

    def _find_begun(self, text: str) -> int:
        """Return where a last line starts that may yet become a state line; the end of the text if it may not."""
        start = text.rfind("\n") + 1
        if (start > 0 or self._at_line_start) and _STATE_MARK.startswith(text[start:]):
            return start
        return len(text)

    def _take_state_line(self, text: str, start: int, end: int, *, is_last: bool = False) -> None:
        try:
            change = decode_document(
                text[start + len(STATE_LINE_PREFIX) : end],
                what="the object of HANDOFF_STATE",
                max_bytes=self._max_bytes,
            )
        except InvalidInputError as error:
            number = self._lines + text.count("\n", 0, start) + 1
            cut = "; the output ends in this line, perhaps by its limit" if is_last else ""
            raise StateRejectedError(
                f"line {number:,} of the output: {error.message}; print 'HANDOFF_STATE ' and one JSON object on one "
                f"line{cut}"
            ) from error
        self._explicit.update((key, value) for key, value in change.items() if key not in _RESERVED_KEYS)


class _Ends:
    """The two ends of a text that grows."""

    def __init__(self) -> None:
        self.head = ""
        self.tail = ""
        self.length = 0

    def add(self, text: str) -> None:
        self._append(text[:_SHORT_CHARS], text[-_TAIL_CHARS:], len(text))

    def extend(self, other: _Ends) -> None:
        self._append(other.head, other.tail, other.length)

    def _append(self, head: str, tail: str, length: int) -> None:
        if self.length < _SHORT_CHARS:
            self.head = (self.head + head)[:_SHORT_CHARS]
        self.tail = (self.tail + tail)[-_TAIL_CHARS:]
        self.length += length


class _Stripped:
    """The ends of a text without the blanks around it."""

    def __init__(self) -> None:
        self._ends = _Ends()
        #: Blanks that count if more text follows.
        self._blanks = _Ends()

    @property
    def length(self) -> int:
        return self._ends.length

    def add(self, text: str) -> None:
        if self._ends.length == 0:
            text = text.lstrip()
        stripped = text.rstrip()
        if stripped:
            self._ends.extend(self._blanks)
            self._blanks = _Ends()
            self._ends.add(stripped)
        self._blanks.add(text[len(stripped) :])

    def excerpt(self) -> str:
        """Return it, with its middle left out if it is long."""
        if self._ends.length <= _SHORT_CHARS:
            return _neutralise(self._ends.head)
        head, tail = self._ends.head[:_HEAD_CHARS], self._ends.tail
        # Whole lines read better, where there are any.
        head = head.rpartition("\n")[0] or head
        tail = tail.partition("\n")[2] or tail
        left_out = self._ends.length - len(head) - len(tail)
        return f"{_neutralise(head)}\n[… {left_out:,} characters left out …]\n{_neutralise(tail)}"


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

    def add(self, *, digest: str, lines: int, size_bytes: int, sha256: str) -> _RecentOutputs:
        last = max((entry["number"] for entry in self.entries), default=0)
        entry = {
            "number": min(max(last, self.dropped + len(self.entries)) + 1, _MAX_COUNT),
            "digest": digest,
            "lines": lines,
            "bytes": size_bytes,
            "sha256": sha256,
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


def _neutralise(text: str) -> str:
    text = _ESCAPE_SEQUENCES.sub("", text)
    # A lone carriage return is a progress bar overwriting its line.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub("\ufffd", text)
