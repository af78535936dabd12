"""The rules of egress: which places are on an agent's list, and which addresses may be connected to at all. Pure.

Two questions, both to be answered with yes: is ``host:port`` on the list, and is every address behind the name public? The
second one is what keeps a name on the list from being pointed at the machine's own services, at neighbours or at a
cloud's metadata. Addresses are refused by IANA's registries of special-purpose addresses and not by `ipaddress`, whose
answers differ between releases of Python.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

#: Most rules of one agent.
MAX_RULES = 64
#: Longest host name, RFC 1035.
MAX_HOST_CHARS = 253

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
#: What a resolver would read as an IPv4 address in some spelling, as inet_aton(3) does: its last part is a number.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(word) for word in text.split())


#: https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast.
_NOT_PUBLIC_V4 = _networks(
    """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24
    192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    """
)
#: All that is given out to the Internet lies in here (RFC 4291, 2.4) …
_PUBLIC_V6 = IPv6Network("2000::/3")
#: … with exceptions, https://www.iana.org/assignments/iana-ipv6-special-registry: protocols (Teredo among them), 6to4 and
#: documentation.
_NOT_PUBLIC_V6 = _networks("2001::/23 2001:db8::/32 2002::/16 3fff::/20")

#: Never, whatever the operator names: link-local addresses, metadata and control services of clouds, multicast, broadcast
#: and the unspecified address.
_NEVER = _networks(
    """
    0.0.0.0/8 100.100.100.200/32 168.63.129.16/32 169.254.0.0/16 192.0.0.192/32 224.0.0.0/4 255.255.255.255/32
    ::/128 fd00:ec2::/32 fd20:ce::254/128 fe80::/10 fec0::/10 ff00::/8
    """
)
#: Where an IPv4 address stands within an IPv6 address, in bits from its right end.
_EMBEDDINGS = (
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::/96"), 0),
    (IPv6Network("::ffff:0:0:0/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("64:ff9b:1::/48"), 0),
    (IPv6Network("2002::/16"), 80),
    (IPv6Network("2001::/32"), 64),
)
#: ISATAP, RFC 5214: an interface identifier that says so, with an IPv4 address behind it.
_ISATAP = (0x00005EFE, 0x02005EFE)


class BadPlaceError(ValueError):
    """Text that is to name a place, and does not; the message says why and what would."""


@dataclass(frozen=True, slots=True)
class Place:
    """A host and a port. The host is a name in lower case and ASCII, or an address in its shortest form."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The host, where it is an address."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Rule:
    """A place that may be reached; with `is_wildcard` all names below the host, and not the host itself."""

    place: Place
    is_wildcard: bool = False

    def allows(self, place: Place) -> bool:
        """Return whether a place is meant."""
        if place.port != self.place.port:
            return False
        if self.is_wildcard:
            return place.host.endswith(f".{self.place.host}") and place.address is None
        return place.host == self.place.host

    def __str__(self) -> str:
        return f"*.{self.place}" if self.is_wildcard else str(self.place)


def parse_rule(text: str) -> Rule:
    """Return the rule that a config says, as ``host:port`` or ``*.host:port``.

    Raises:
        BadPlaceError: It is none.
    """
    is_wildcard = text.startswith("*.")
    place = parse_place(_as_ascii(text.removeprefix("*.")))
    if is_wildcard and (place.address is not None or "." not in place.host):
        raise BadPlaceError("a wildcard stands for names below a domain; write it like *.example.com:443")
    return Rule(place, is_wildcard)


def parse_place(text: str) -> Place:
    """Return the place that ``host:port`` names; an IPv6 address stands in brackets.

    Raises:
        BadPlaceError: It names none, or in a spelling that two programs may read in two ways.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise BadPlaceError("a place needs a port from 1 to 65535; write it like api.example.com:443")
    return Place(parse_host(host), int(port))


def parse_host(text: str) -> str:
    """Return a host as `Place` has it: an ASCII name, an IPv4 address, or an IPv6 address in brackets.

    Raises:
        BadPlaceError: It is none.
    """
    if text.startswith("[") and text.endswith("]"):
        try:
            # A zone, as in fe80::1%eth0, means something on one machine only.
            return str(IPv6Address("" if "%" in text else text[1:-1]))
        except ValueError:
            raise BadPlaceError("what stands in brackets must be an IPv6 address") from None
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > MAX_HOST_CHARS or not all(map(_LABEL.fullmatch, labels)):
        raise BadPlaceError(
            "the host must be a name or an IP address, with no scheme, user or path; write it like "
            "api.example.com:443, 192.0.2.7:443 or [2001:db8::7]:443"
        )
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise BadPlaceError(
                "an IPv4 address is written as four decimal numbers, like 192.0.2.7"
            ) from None
    return name


def _as_ascii(text: str) -> str:
    """Return a name with letters of any language as it is looked up (IDNA)."""
    host, colon, port = text.rpartition(":")
    if text.isascii() or not colon:
        return text
    try:
        # Long names take the codec quadratic time.
        if len(host) <= MAX_HOST_CHARS:
            return f"{host.encode('idna').decode()}:{port}"
        raise BadPlaceError(f"the host is longer than {MAX_HOST_CHARS} characters")
    except UnicodeError:
        raise BadPlaceError("the host has characters that no host name has") from None


def find_rule(rules: Iterable[Rule], place: Place) -> Rule | None:
    """Return the first rule that allows a place; None: none does."""
    return next((rule for rule in rules if rule.allows(place)), None)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return networks out of a list with commas.

    Raises:
        ValueError: One is none, with what to write instead.
    """
    found = []
    for word in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(ipaddress.ip_network(word))
        except ValueError as error:
            raise ValueError(f"give networks like 10.0.0.0/8, separated by commas; {error}") from None
    return tuple(found)


def may_connect(address: Address, private: Sequence[Network] = ()) -> bool:
    """Return whether an address may be connected to: it is public, or in one of the networks the operator named.

    An address that carries another one in it, as those of NAT64 do, may be only if that one may be too.
    """
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    if _is_in(address, _NEVER) or not (is_public(address) or _is_in(address, private)):
        return False
    return all(may_connect(inner, private) for inner in _embedded(address))


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public Internet."""
    if isinstance(address, IPv4Address):
        return not _is_in(address, _NOT_PUBLIC_V4)
    return address in _PUBLIC_V6 and not _is_in(address, _NOT_PUBLIC_V6)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _embedded(address: Address) -> list[IPv4Address]:
    if isinstance(address, IPv4Address) or address.is_loopback:
        return []
    number = int(address)
    found = [
        IPv4Address(number >> shift & 0xFFFFFFFF) for network, shift in _EMBEDDINGS if address in network
    ]
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(IPv4Address(number & 0xFFFFFFFF))
    if address in _EMBEDDINGS[-1][0]:
        # Teredo, RFC 4380: the client's address behind the server's, all bits turned.
        found.append(IPv4Address(~number & 0xFFFFFFFF))
    return found
