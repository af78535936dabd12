"""What a program asks of the proxy: one request's head, parsed strictly, and made anew for the server. Pure.

A proxy that reads a request in one way and a server that reads it in another can be played off against each other
(request smuggling). So anything that is not plainly RFC 9112 is refused, nothing is repaired, and what goes on to the
server is written anew out of what was understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.egress.policy import BadPlaceError, Place, parse_place

#: Bound on a request's head.
MAX_HEAD_BYTES = 16 * 1024
#: Bound on what one request announces as its body.
MAX_BODY_DIGITS = 15

_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.[01]")
#: RFC 9110, 5.6.2 and 5.5; a value holds no control characters but tabs.
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_ABSOLUTE = re.compile(r"http://([^/?#@\\]+)(/[^#]*|\?[^#]*|)", re.IGNORECASE)
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class BadRequestError(ValueError):
    """A request that is not understood, or not for this proxy; the message says what to send instead."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        #: HTTP status to answer with.
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    place: Place
    #: What to send to the server; None: a tunnel (``CONNECT``), in which the program speaks for itself.
    head: bytes | None = None
    #: Bytes that follow the head.
    body_bytes: int = 0


def parse_request(head: bytes) -> Request:
    """Return what a head asks for.

    Args:
        head: From the first byte to the empty line, itself included.

    Raises:
        BadRequestError: It is not understood.
    """
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise BadRequestError("this is no request of HTTP/1.1")
    fields = [_field(one) for one in lines[1:]]
    method, target = line[1], line[2].decode("ascii")
    body_bytes = _body_bytes(fields)
    try:
        if method == b"CONNECT":
            if body_bytes:
                raise BadRequestError("a CONNECT has no body")
            return Request(parse_place(target))
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise BadRequestError(
                "this is a proxy: ask for http://host/path, or CONNECT host:port; with no user name and no #fragment"
            )
        authority = absolute[1]
        has_port = re.search(r":[0-9]*$", authority) is not None
        place = parse_place(authority if has_port else f"{authority}:80")
    except BadPlaceError as error:
        raise BadRequestError(str(error)) from None
    return Request(place, _head(method, place, absolute[2], fields), body_bytes)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise BadRequestError("a header field is malformed")
    return name, value.strip(b" \t")


def _body_bytes(fields: list[tuple[bytes, bytes]]) -> int:
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    if any(name.lower() == b"transfer-encoding" for name, _ in fields):
        raise BadRequestError(
            "a body is passed on with a Content-Length only, not with a Transfer-Encoding; or use https", 411
        )
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]+", lengths[0]) or len(lengths[0]) > MAX_BODY_DIGITS:
        raise BadRequestError("the Content-Length must be one number")
    return int(lengths[0])


def _head(method: bytes, place: Place, path: str, fields: list[tuple[bytes, bytes]]) -> bytes:
    dropped = set(_HOP_BY_HOP)
    for name, value in fields:
        if name.lower() == b"connection":
            dropped.update(word.strip().lower() for word in value.split(b","))
    # The length of the body is what the server is to read, whatever else is said of it.
    dropped.discard(b"content-length")
    host = str(place).removesuffix(":80") if place.port == 80 else str(place)
    if not path.startswith("/"):
        path = "/" + path
    lines = [method + b" " + path.encode() + b" HTTP/1.1", b"Host: " + host.encode()]
    lines += [name + b": " + value for name, value in fields if name.lower() not in dropped]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])
