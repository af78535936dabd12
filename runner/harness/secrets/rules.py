"""What names and values of secrets may be."""

from __future__ import annotations

import re

from harness.errors import InvalidInputError

#: What a name of a secret looks like (a regular expression for the whole of it).
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

#: Shortest value, in characters. A shorter one stands in ordinary text, which would be masked with it.
MIN_VALUE_CHARS = 8
#: A value has this many different characters at least, for the same reason.
MIN_DIFFERENT_CHARS = 4
#: Largest value, in bytes of UTF-8: keys and certificates have room.
MAX_VALUE_BYTES = 16 * 1024

_NAME = re.compile(NAME_PATTERN.replace("$", r"\Z"))


def check_secret_name(name: str) -> str:
    """Return a name that may be a secret's.

    Raises:
        InvalidInputError: It may not.
    """
    if not _NAME.match(name):
        raise InvalidInputError(
            f"{name[:64]!r} is no name for a secret; use 1 to 64 letters, digits, '.', '_' and '-', the first one a "
            "letter or a digit"
        )
    return name


def check_secret_value(value: str) -> None:
    """Refuse what can't be handed over as an environment variable, or can't be masked. No message quotes it.

    Raises:
        InvalidInputError: What is wrong with it.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInputError("the value holds a lone surrogate, which is no valid text") from None
    if size > MAX_VALUE_BYTES:
        raise InvalidInputError(
            f"the value is {size:,} bytes, more than the limit of {MAX_VALUE_BYTES:,}; store a key to it instead"
        )
    if "\0" in value:
        raise InvalidInputError("the value holds a NUL byte, which no environment variable can")
    if not is_maskable(value.strip()):
        raise InvalidInputError(
            f"the value is too short or too uniform: masking it would hide ordinary output; use {MIN_VALUE_CHARS} "
            f"characters or more, {MIN_DIFFERENT_CHARS} of them different"
        )


def is_maskable(text: str) -> bool:
    """Whether a text is so distinct that masking it hides nothing else."""
    return len(text) >= MIN_VALUE_CHARS and len(set(text)) >= MIN_DIFFERENT_CHARS
