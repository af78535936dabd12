"""`Masker`: takes secrets out of what a run shows, however it is cut into pieces and whichever way they are written.

A secret is found as it is and escaped for JSON, Python, HTML and URLs, in hexadecimal, and in base64 at any offset;
of one with several lines also each line that is long enough. What overlaps becomes one mask. This keeps accidents out
of logs. It is no wall: whoever writes an agent can always write its secrets in a way that nobody looks for.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import quote, quote_plus

from harness.secrets.rules import is_maskable

#: No form of a secret is shorter, in bytes; so many bytes at its begin are what it is looked for by.
HEAD_BYTES = 8

#: What comes after some data: perhaps more; nothing, and something may have cut it short; nothing, it is all there.
End = Literal["open", "cut", "whole"]

#: Stand in the place of a secret. The first one counts whose character is in no secret, so that no mask, with what is
#: beside it, reads as another secret.
_MASKS = ("***", "###", "===", "~~~", "^^^", "•••", "███")


class Masker:
    """Knows the secrets of one run. Streams, texts and JSON go through it."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        """Look for these values; each is at least as long as `harness.secrets.rules.MIN_VALUE_CHARS`."""
        forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
        everything = b"".join(forms)
        self.mask = next((mask for mask in _MASKS if mask[0].encode() not in everything), _MASKS[0])
        self._by_head: dict[bytes, list[bytes]] = {}
        for form in forms:
            self._by_head.setdefault(form[:HEAD_BYTES], []).append(form)
        self._short_starts = frozenset(head[:size] for head in self._by_head for size in range(1, HEAD_BYTES))
        # One set of bytes for each place of a head. It matches other text as well, but seldom, and is as fast for a
        # thousand forms as for one, which alternatives are not.
        places = zip(*self._by_head, strict=True)
        self._search = re.compile(b"".join(map(_any_of, places)) or b"(?!)").search

    def __bool__(self) -> bool:
        return bool(self._by_head)

    def stream(self) -> MaskedStream:
        """Return a stream of its own to be masked."""
        return MaskedStream(self)

    def text(self, text: str, *, is_cut: bool = False) -> str:
        """Mask a text; one that may have been cut short as `MaskedStream.finish` does."""
        if not self:
            return text
        stream = self.stream()
        masked = stream.feed(text.encode(errors="surrogatepass")) + stream.finish(is_cut=is_cut)
        return masked.decode(errors="surrogatepass")

    def json(self, value: Any) -> Any:
        """Mask what JSON can hold: all strings, keys, and numbers whose digits hold a secret."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(item) for item in value]
        if isinstance(value, dict):
            return self._object(value)
        if isinstance(value, int | float) and self.text(repr(value)) != repr(value):
            return self.mask
        return value

    def _object(self, value: dict[str, Any]) -> dict[str, Any]:
        masked: dict[str, Any] = {}
        for key, item in value.items():
            new = name = self.text(key)
            number = 1
            while new in masked or (new != key and new in value):
                # Two keys that were masked to the same one must not become one.
                number += 1
                new = f"{name}{number}"
            masked[new] = self.json(item)
        return masked

    def find(self, data: bytes, end: End) -> tuple[list[tuple[int, int]], int]:
        """Return where secrets stand in `data`, by rising begin, and where what may be the begin of one starts.

        Before that place nothing can change by what comes after `data`. Where something was cut, half a secret at the
        end counts as one. Less does not: the first words of an address are no secret.
        """
        spans: list[tuple[int, int]] = []
        size = len(data)
        found = self._search(data)
        while found is not None:
            at = found.start()
            for form in self._by_head.get(found.group(), ()):
                if data.startswith(form, at):
                    spans.append((at, at + len(form)))
                    break
                if end != "whole" and len(form) > size - at and form.startswith(data[at:]):
                    if end == "open":
                        return spans, at
                    if 2 * (size - at) >= len(form):
                        spans.append((at, size))
                        break
            found = self._search(data, at + 1)
        if end == "open":
            for length in range(min(HEAD_BYTES - 1, size), 0, -1):
                if data[size - length :] in self._short_starts:
                    return spans, size - length
        return spans, size


class MaskedStream:
    """One stream of bytes. What it gives does not depend on how its input is cut."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._mask = masker.mask.encode()
        #: The end of the input, if it may be the begin of a secret.
        self._held = b""
        #: How much of that is part of a secret whose mask was given already.
        self._hidden = 0

    def feed(self, data: bytes) -> bytes:
        """Take a piece; return what is certain of it, and of what was held back."""
        return self._advance(self._held + data if self._held else data, "open")

    def finish(self, *, is_cut: bool = True) -> bytes:
        """Return the rest. Half a secret at its end is masked too, unless nothing can have cut it."""
        return self._advance(self._held, "cut" if is_cut else "whole")

    def _advance(self, data: bytes, end: End) -> bytes:
        spans, safe = self._masker.find(data, end)
        at = self._hidden
        shown: list[bytes] = []
        for start, stop in spans:
            if start >= at:
                shown += (data[at:start], self._mask)
            at = max(at, stop)
        shown.append(data[at:safe])
        self._hidden = max(0, at - safe)
        self._held = data[safe:]
        return b"".join(shown)


def _any_of(values: Iterable[int]) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % value for value in sorted(set(values))) + b"]"


def _forms(value: str) -> Iterator[bytes]:
    """Yield every way to write a value that is looked for."""
    # Blanks around it need no mask, and those that ordinary output ends with would be held back.
    text = value.strip()
    yield from _spellings(text)
    yield from _encodings(text.encode())
    lines = {line.strip() for line in text.splitlines()} - {text}
    for line in lines:
        if is_maskable(line):
            yield from _spellings(line)


def _spellings(text: str) -> Iterator[bytes]:
    as_json = json.dumps(text)[1:-1]
    forms = {
        text,
        as_json,
        json.dumps(text, ensure_ascii=False)[1:-1],
        # JSON in a string of JSON
        json.dumps(as_json)[1:-1],
        html.escape(text),
        html.escape(text, quote=False),
        html.escape(text).replace("&#x27;", "&#39;"),
        quote(text),
        quote(text, safe=""),
        quote_plus(text),
        re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
        # Which quotes Python escapes is decided by all of a string, so also by what is beside the secret.
        repr(text)[1:-1],
        repr("'" + text)[2:-1],
        repr("\"'" + text)[4:-1],
        ascii(text)[1:-1],
        repr(text.encode())[2:-1],
    }
    return (form.encode() for form in forms)


def _encodings(data: bytes) -> Iterator[bytes]:
    yield data.hex().encode()
    yield data.hex().upper().encode()
    for before in range(3):
        # What stands before and after shares the characters at the edges, as the user's name in Basic authentication.
        first, end = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        padded = b"\0" * before + data
        yield base64.b64encode(padded)[first:end]
        yield base64.urlsafe_b64encode(padded)[first:end]
