"""What the egress proxy understands of a request, and what it makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.egress.request import BadRequestError, Request, parse_request


def parse(*lines: str) -> Request:
    return parse_request("\r\n".join([*lines, "", ""]).encode("latin-1"))


def test_a_tunnel_is_asked_for_by_place() -> None:
    assert parse("CONNECT API.example.com:443 HTTP/1.1", "Host: whatever") == parse(
        "CONNECT api.example.com:443 HTTP/1.0"
    )
    assert str(parse("CONNECT [2606:4700::1]:443 HTTP/1.1").place) == "[2606:4700::1]:443"


def test_a_request_is_made_anew_for_its_server() -> None:
    request = parse(
        "POST http://Example.com/a?b=http://c HTTP/1.1",
        "Host: evil.org",
        "Proxy-Authorization: secret",
        "Proxy-Connection: keep-alive",
        "Connection: keep-alive, X-Hop, Content-Length",
        "Keep-Alive: 5",
        "Upgrade: h2c",
        "TE: trailers",
        "X-Hop: 1",
        "X-End: 2",
        "Content-Length: 3",
    )

    assert (str(request.place), request.body_bytes) == ("example.com:80", 3)
    assert request.head == (
        b"POST /a?b=http://c HTTP/1.1\r\nHost: example.com\r\nX-End: 2\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "place", "path"),
    [
        ("http://example.com", "example.com:80", "/"),
        ("http://example.com?q", "example.com:80", "/?q"),
        ("HTTP://example.com:8080/", "example.com:8080", "/"),
        ("http://[2606:4700::1]/x", "[2606:4700::1]:80", "/x"),
        ("http://example.com:80/http://a@b/", "example.com:80", "/http://a@b/"),
    ],
)
def test_absolute_targets_name_place_and_path(target: str, place: str, path: str) -> None:
    request = parse(f"GET {target} HTTP/1.1")

    assert str(request.place) == place
    assert request.head is not None
    assert request.head.startswith(f"GET {path} HTTP/1.1\r\nHost: ".encode())


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1",
        "GET https://example.com/ HTTP/1.1",
        "GET ftp://example.com/ HTTP/1.1",
        "GET http:///path HTTP/1.1",
        "GET http://user@example.com/ HTTP/1.1",
        "GET http://example.com:80@evil.org/ HTTP/1.1",
        "GET http://example.com\\@evil.org/ HTTP/1.1",
        "GET http://example.com#@evil.org/ HTTP/1.1",
        "GET http://2130706433/ HTTP/1.1",
        "GET http://0x7f.1/ HTTP/1.1",
        "GET http://017700000001/ HTTP/1.1",
        "GET http://127.1/ HTTP/1.1",
        "GET http://[fe80::1%25eth0]/ HTTP/1.1",
        "GET http://example.com:/ HTTP/1.1",
        "GET http://example.com:99999/ HTTP/1.1",
        "GET http://ex%61mple.com/ HTTP/1.1",
        "GET http://example.com/a b HTTP/1.1",
        "GET  http://example.com/ HTTP/1.1",
        "GET http://example.com/ HTTP/2.0",
        "GET http://example.com/",
        "get http://example.com/ HTTP/1.1",
        "CONNECT example.com HTTP/1.1",
        "CONNECT http://example.com:443 HTTP/1.1",
        "CONNECT user@example.com:443 HTTP/1.1",
        "CONNECT example.com:443/ HTTP/1.1",
        "CONNECT example.com:443\rX: y HTTP/1.1",
        "CONNECT example.com:443\nX: y HTTP/1.1",
        "CONNECT example.com:443\x00 HTTP/1.1",
        "CONNECT ex\xe4mple.com:443 HTTP/1.1",
        "",
    ],
)
def test_a_request_that_two_programs_may_read_in_two_ways_is_refused(line: str) -> None:
    with pytest.raises(BadRequestError):
        parse(line)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Length: 1", "Content-Length: 1"], 400),
        (["Content-Length: +1"], 400),
        (["Content-Length: 1, 1"], 400),
        (["Content-Length:"], 400),
        (["Content-Length: " + "9" * 16], 400),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 411),
        (["Transfer-Encoding: chunked"], 411),
        (["transfer-encoding: identity"], 411),
        (["Transfer-Encoding : chunked"], 400),
        ([" folded"], 400),
        (["A: b", "\tfolded"], 400),
        (["A: b\nHost: evil.org"], 400),
        (["A: b\rHost: evil.org"], 400),
        (["A: \x00"], 400),
        (["no colon"], 400),
        ([": no name"], 400),
        (["Bad name: x"], 400),
    ],
)
def test_a_head_whose_end_or_body_could_be_argued_about_is_refused(headers: list[str], status: int) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse("POST http://example.com/ HTTP/1.1", *headers)
    assert caught.value.status == status


def test_a_tunnel_has_no_body() -> None:
    with pytest.raises(BadRequestError, match="no body"):
        parse("CONNECT example.com:443 HTTP/1.1", "Content-Length: 5")


@given(head=st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(head: bytes) -> None:
    try:
        request = parse_request(head + b"\r\n\r\n")
    except BadRequestError:
        return
    assert request.place.host


@given(
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30),
)
def test_what_goes_on_is_one_head(path: str, value: str) -> None:
    try:
        request = parse(f"GET http://example.com/{path} HTTP/1.1", f"X: {value}")
    except BadRequestError:
        return  # C1 controls are no part of a value that is checked as bytes
    assert request.head is not None
    assert request.head.count(b"\r\n\r\n") == 1
    assert request.head.count(b"\r\n") == 5
