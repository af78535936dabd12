"""Which places are on a list, and which addresses may be connected to."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.egress.policy import (
    BadPlaceError,
    Place,
    find_rule,
    is_public,
    may_connect,
    parse_networks,
    parse_place,
    parse_rule,
)

V4 = st.ip_addresses(v=4)
EVERYWHERE = parse_networks("0.0.0.0/0, ::/0")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("api.example.com:443", "api.example.com:443"),
        ("API.Example.COM.:443", "api.example.com:443"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("xn--bcher-kva.example:443", "xn--bcher-kva.example:443"),
        ("_service.example.com:1", "_service.example.com:1"),
        ("93.184.216.34:65535", "93.184.216.34:65535"),
        ("[2606:2800:0220:0001:0000:0000:0000:1946]:443", "[2606:2800:220:1::1946]:443"),
        ("*.Example.com:443", "*.example.com:443"),
    ],
)
def test_a_rule_is_kept_in_one_spelling(text: str, place: str) -> None:
    assert str(parse_rule(text)) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:1000000",
        "example.com:+80",
        "example.com:\uff18\uff10",
        "example.com: 80",
        ":80",
        ".:80",
        "*:443",
        "*.com:443",
        "*.1.2.3.4:443",
        "*.*.example.com:443",
        "a.*.example.com:443",
        "a..example.com:443",
        "-a.example.com:443",
        "https://example.com:443",
        "user@example.com:443",
        "example.com/path:443",
        "exa mple.com:443",
        "example.com\r\nHost:443",
        "example.com\0.a:443",
        "::1:80",
        "[::1:80",
        "[fe80::1%eth0]:80",
        "[127.0.0.1]:80",
        "2130706433:80",
        "0x7f000001:80",
        "0x7f.1:80",
        "0177.0.0.1:80",
        "127.1:80",
        "1.2.3.4.5:80",
        "1.2.3.256:80",
        "example.com.0x7f:80",
        "a" * 64 + ".com:80",
        "a." * 127 + "com:80",
        "ü" * 10_000 + ":80",
    ],
)
def test_what_may_be_read_in_two_ways_is_no_rule(text: str) -> None:
    with pytest.raises(BadPlaceError):
        parse_rule(text)


@pytest.mark.parametrize(
    ("rule", "place", "is_allowed"),
    [
        ("example.com:443", "example.com:443", True),
        ("example.com:443", "EXAMPLE.com.:443", True),
        ("example.com:443", "example.com:80", False),
        ("example.com:443", "a.example.com:443", False),
        ("example.com:443", "example.com.evil.org:443", False),
        ("*.example.com:443", "a.example.com:443", True),
        ("*.example.com:443", "a.b.example.com:443", True),
        ("*.example.com:443", "example.com:443", False),
        ("*.example.com:443", "evilexample.com:443", False),
        ("*.example.com:443", "a.example.com:80", False),
        ("93.184.216.34:80", "93.184.216.34:80", True),
        ("93.184.216.34:80", "[::ffff:93.184.216.34]:80", False),
        ("[2001:4860::1]:80", "[2001:4860:0::0:1]:80", True),
    ],
)
def test_a_rule_allows_exactly_its_places(rule: str, place: str, *, is_allowed: bool) -> None:
    assert (find_rule([parse_rule(rule)], parse_place(place)) is not None) is is_allowed


PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "172.32.0.1",
    "2606:4700::1111",
    "2001:4860:4860::8888",
]
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.0.1", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::ffff:1.1.1.1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::1.1.1.1", "64:ff9b:1::1", "100::1",
    "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:101:101::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1",
]  # fmt: skip
ALWAYS_REFUSED = [
    "0.0.0.0", "100.100.100.200", "168.63.129.16", "169.254.0.1", "169.254.169.254", "192.0.0.192", "224.0.0.1",
    "255.255.255.255", "::", "::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1", "2001::5601:5601", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%1", "fd00::1%1",
    "ff02::1", "fd00::5efe:169.254.169.254",
]  # fmt: skip


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_may_be_connected_to(text: str) -> None:
    assert may_connect(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_no_other_address_may(text: str) -> None:
    assert not may_connect(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ALWAYS_REFUSED)
def test_metadata_and_link_local_addresses_may_not_whatever_the_operator_names(text: str) -> None:
    assert not may_connect(ipaddress.ip_address(text), EVERYWHERE)


@pytest.mark.parametrize(
    "text", ["10.1.2.3", "127.0.0.1", "::1", "fd12::1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3"]
)
def test_the_operators_networks_may_be_connected_to(text: str) -> None:
    assert may_connect(ipaddress.ip_address(text), EVERYWHERE)


def test_an_address_within_another_must_be_named_too() -> None:
    mapped = parse_networks("::ffff:0:0/96")

    assert not may_connect(ipaddress.ip_address("::ffff:10.1.2.3"), mapped)
    assert may_connect(ipaddress.ip_address("::ffff:10.1.2.3"), (*mapped, *parse_networks("10.0.0.0/8")))


@given(address=V4)
def test_what_python_knows_as_private_is_never_public(address: IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address)


@given(address=st.ip_addresses(v=6))
def test_what_python_knows_as_private_is_never_public_in_ipv6(address: IPv6Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address)


@given(
    inner=V4,
    shift_and_prefix=st.sampled_from(
        [(0, "::ffff:0:0"), (0, "::"), (0, "64:ff9b::"), (80, "2002::"), (64, "2001::")]
    ),
)
def test_no_private_address_gets_through_within_another(
    inner: IPv4Address, shift_and_prefix: tuple[int, str]
) -> None:
    shift, prefix = shift_and_prefix
    outer = IPv6Address(int(IPv6Address(prefix)) | int(inner) << shift)

    assert not may_connect(outer)
    if not may_connect(inner, EVERYWHERE) and outer != IPv6Address("::1"):
        assert not may_connect(outer, EVERYWHERE)


@given(text=st.text(max_size=300))
def test_any_text_is_a_place_or_refused_and_a_place_reads_back_as_itself(text: str) -> None:
    try:
        place = parse_place(text)
    except BadPlaceError:
        return
    assert parse_place(str(place)) == place
    assert place.host.isascii()
    assert place.host.isprintable()


@given(address=st.ip_addresses(), port=st.integers(1, 65535))
def test_each_address_is_a_place(address: IPv4Address | IPv6Address, port: int) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)

    assert parse_place(f"{host}:{port}") == Place(str(address), port)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "example.com", "10.0.0.0/8;fd00::/8"])
def test_what_is_no_network_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"give networks like 10\.0\.0\.0/8"):
        parse_networks(text)


def test_networks_are_read_with_spaces_and_empty_parts() -> None:
    assert [str(one) for one in parse_networks(" 10.0.0.0/8 ,, fd00::/8,127.0.0.1 ")] == [
        "10.0.0.0/8",
        "fd00::/8",
        "127.0.0.1/32",
    ]
