"""User-owned JSON (handoff state, context, config) as canonical text with bounds.

Both stores keep such documents as *text*, not as native sub-documents: `$`-prefixed and dotted keys, integers beyond
64 bits and key order then survive every store alike, and a size means the same number of bytes everywhere.
Pure functions; nothing here does I/O.
"""

from __future__ import annotations

import json
from typing import Any

from harness.errors import InvalidInputError

#: Deepest nesting accepted. Far above what a state needs, far below where JSON parsers hit their recursion limits.
MAX_DEPTH = 64

#: Longest integer accepted, in decimal digits: CPython's own limit for int <-> str conversion (PEP 682 era default).
_MAX_INT_BITS = 4300 * 3


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
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        bad = error.object[error.start]
        raise InvalidInputError(f"{what} holds the lone surrogate {bad!r}, which is no valid text") from error
    if max_bytes is not None and size > max_bytes:
        raise InvalidInputError(f"{what} is {size:,} bytes of JSON, more than the limit of {max_bytes:,} bytes")
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
        raise InvalidInputError(f"{what} is {size:,} bytes of JSON, more than the limit of {max_bytes:,} bytes")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
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
        InvalidInputError: Naming the path of the first offending value.
    """
    stack: list[tuple[object, str, int]] = [(value, what, 0)]
    while stack:
        item, path, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"{what} is nested deeper than {MAX_DEPTH} levels (at {path[:120]}…)")
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str):
                    raise InvalidInputError(
                        f"{path} has the key {key!r} ({type(key).__name__}); JSON keys are strings, use {str(key)!r}"
                    )
                stack.append((inner, f"{path}.{key}", depth + 1))
        elif isinstance(item, list | tuple):
            stack.extend((inner, f"{path}[{index}]", depth + 1) for index, inner in enumerate(item))
        elif isinstance(item, float):
            if item != item or item in (float("inf"), float("-inf")):
                raise InvalidInputError(f"{path} is {item!r}, which JSON has no word for; use null or a string")
        elif isinstance(item, int):
            if item.bit_length() > _MAX_INT_BITS:
                raise InvalidInputError(f"{path} is an integer of {item.bit_length():,} bits; use a string")
        elif item is not None and not isinstance(item, str):
            raise InvalidInputError(f"{path} is a {type(item).__name__}, which JSON cannot hold")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
