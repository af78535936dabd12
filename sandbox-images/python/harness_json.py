"""JSON for the supervisor, by the interpreter's own C functions alone.

The module `json` stands on regular expressions, which take longer to import than all else that the supervisor needs. What
is read here was written by the harness, and what is written is read by it.
"""

from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Options:
    """What `json.JSONDecoder` has by default."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan = make_scanner(_Options())  # type: ignore[arg-type]


def loads(data: bytes) -> "Any":
    """Decode one JSON text that has nothing around it."""
    text = data.decode()
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"no JSON at character {stop.value}") from None
    if end != len(text):
        raise ValueError(f"more than JSON at character {end}")
    return value


def dumps(document: "dict[str, str | float | bool | None]") -> bytes:
    """Encode a flat object; its numbers are finite."""
    members = (f"{encode_basestring_ascii(name)}:{_encode(value)}" for name, value in document.items())
    return ("{" + ",".join(members) + "}").encode()


def _encode(value: "str | float | bool | None") -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return encode_basestring_ascii(value) if isinstance(value, str) else repr(value)
