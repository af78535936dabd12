"""User-owned JSON (handoff state, context, config) as canonical text with bounds.

Both stores keep such documents as *text*, not as native sub-documents: `$`-prefixed and dotted keys, integers beyond
64 bits and key order then survive every store alike, and a size means the same number of bytes everywhere.
Pure functions; nothing here does I/O.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NamedTuple

from harness.errors import InvalidInputError

#: Deepest nesting accepted. Far above what a state needs, far below where JSON parsers hit their recursion limits.
MAX_DEPTH = 64

#: Longest integer accepted. CPython converts no more than 4,300 decimal digits, of at least 3 bits each.
_MAX_INT_BITS = 4300 * 3

#: What messages quote of a path, and of one key in it.
_MAX_PATH_CHARS = 200
_MAX_STEP_CHARS = 60


def encode_document(value: object, *, what: str, max_bytes: int | None = None) -> str:
    """Encode a JSON object canonically: compact separators, UTF-8, insertion order kept.

    Args:
        value: A `dict` of JSON values with string keys.
        what: How messages call the document, for example ``"state"``.
        max_bytes: Bound on the UTF-8 size of the text; None for no bound.

    Returns:
        The text; `decode_document` gives an equal value back.

    Raises:
        InvalidInputError: Naming the path of the offending value, for anything that JSON cannot hold exactly (NaN,
            keys that are no strings, lone surrogates, other types), nesting past `MAX_DEPTH`, or text past `max_bytes`.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} must be a JSON object (a dict), got {type(value).__name__}")
    check_json(value, what=what)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    size = len(text.encode())
    if max_bytes is not None and size > max_bytes:
        raise InvalidInputError(
            f"{what} is {size:,} bytes of JSON, more than the limit of {max_bytes:,} bytes"
        )
    return text


def decode_document(text: str | bytes, *, what: str, max_bytes: int | None = None) -> dict[str, Any]:
    """Decode and check one JSON object that may come from an untrusted writer.

    Args:
        text: JSON text.
        what: How messages call the document.
        max_bytes: Bound on the size of the text; checked before parsing.

    Raises:
        InvalidInputError: For anything but a JSON object within the bounds of `encode_document`.
    """
    size = len(text.encode(errors="surrogatepass")) if isinstance(text, str) else len(text)
    if max_bytes is not None and size > max_bytes:
        raise InvalidInputError(
            f"{what} is {size:,} bytes of JSON, more than the limit of {max_bytes:,} bytes"
        )
    try:
        # Told apart here: given bytes, json.loads guesses between UTF-8, -16 and -32.
        value = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise InvalidInputError(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InvalidInputError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} must be a JSON object, got {type(value).__name__}")
    check_json(value, what=what)
    return value


def check_json(value: object, *, what: str) -> None:
    """Refuse what JSON cannot hold exactly, without recursion, so that depth is a number and not a crash.

    Raises:
        InvalidInputError: Naming the path of the first offending value found.
    """
    stack: list[tuple[object, _Place, int]] = [(value, _Place(None, what), 0)]
    while stack:
        item, place, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"{what} is nested deeper than {MAX_DEPTH} levels (at {place})")
        if isinstance(item, dict):
            for key, inner in item.items():
                _check_key(key, place)
                stack.append((inner, _Place(place, key), depth + 1))
        elif isinstance(item, list | tuple):
            stack.extend((inner, _Place(place, index), depth + 1) for index, inner in enumerate(item))
        else:
            _check_scalar(item, place)


class _Place(NamedTuple):
    """Where a value stands. A chain and not a text, since texts would repeat a long key for each value under it."""

    parent: _Place | None
    step: str | int

    def __str__(self) -> str:
        steps: list[str] = []
        place: _Place | None = self
        while place is not None:
            if place.parent is None:
                steps.append(str(place.step))
            elif isinstance(place.step, int):
                steps.append(f"[{place.step}]")
            else:
                steps.append(f".{_brief(place.step)}")
            place = place.parent
        path = "".join(reversed(steps))
        return path if len(path) <= _MAX_PATH_CHARS else f"{path[:_MAX_PATH_CHARS]}…"


def _check_key(key: object, place: _Place) -> None:
    if not isinstance(key, str):
        raise InvalidInputError(
            f"{place} has the key {_brief(repr(key))} ({type(key).__name__}); JSON keys are strings, "
            f"use {_brief(repr(str(key)))}"
        )
    _check_text(key, place, what="a key in ")


def _check_scalar(item: object, place: _Place) -> None:
    if isinstance(item, str):
        _check_text(item, place)
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise InvalidInputError(f"{place} is {item!r}, which JSON has no word for; use null or a string")
    elif isinstance(item, int):
        if item.bit_length() > _MAX_INT_BITS:
            raise InvalidInputError(f"{place} is an integer of {item.bit_length():,} bits; use a string")
    elif item is not None:
        raise InvalidInputError(f"{place} is a {type(item).__name__}, which JSON cannot hold")


def _check_text(text: str, place: _Place, what: str = "") -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise InvalidInputError(
            f"{what}{place} holds the lone surrogate {bad!r}, which is no valid text"
        ) from None


def _brief(text: str) -> str:
    start = text[:_MAX_STEP_CHARS].encode(errors="backslashreplace").decode()
    return start if len(text) <= _MAX_STEP_CHARS else f"{start}…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict; readers differ on what a name given twice means (RFC 8259, section 4)."""
    value = dict(pairs)
    if len(value) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {_brief(repr(twice))} is given twice")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
