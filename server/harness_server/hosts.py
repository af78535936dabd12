"""Which names the server goes by, and which pages of a browser may talk to it.

A page that somebody looks at can make the browser send requests to servers of the same machine. A server that asks for no
token has to tell those from its user's: by Host, since an attacker's name that suddenly stands for 127.0.0.1 (DNS
rebinding) is still the attacker's name, and by Origin, which browsers send along with every request that changes
something (https://fetch.spec.whatwg.org/#origin-header).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler

from harness.errors import PermissionDeniedError
from harness.settings import Settings

#: Asked by those who look after the process, under whatever address they know it by, and telling nothing that is secret.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+?)\.?(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Authority:
    """A host and, where it is said, a port, as in a URL."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a Host header; None when it is none."""
        found = _AUTHORITY.fullmatch(text)
        if found is None:
            return None
        port = None if found[2] is None else int(found[2])
        return None if port is not None and port > 65535 else cls(found[1].lower(), port)


@dataclass(frozen=True, slots=True)
class HostRules:
    """The names that count."""

    #: None: any, since whoever may do something has shown a token.
    names: frozenset[str] | None
    #: Names behind a proxy, whose pages may talk to the server whatever Host the proxy sends.
    trusted: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rules for where the server listens."""
        trusted = frozenset(name.strip().lower() for name in settings.allowed_hosts.split(",")) - {""}
        if not settings.is_loopback and not trusted:
            return cls(None, trusted)
        address = ip_address(settings.host)
        bound = f"[{address}]" if address.version == 6 else str(address)
        return cls(_LOOPBACK | trusted | {bound}, trusted)

    def check(self, host: str | None, origin: str | None) -> None:
        """Refuse a request that is meant for another server, or comes from another's page.

        Raises:
            PermissionDeniedError: Naming the header at fault.
        """
        authority = Authority.parse(host or "")
        if authority is None or (self.names is not None and authority.host not in self.names):
            raise PermissionDeniedError(
                f"the server does not go by the name {(host or '')[:100]!r} in the header Host; use localhost or "
                "127.0.0.1, or add the name to HARNESS_ALLOWED_HOSTS"
            )
        if origin is not None and not self._is_own(origin, authority):
            raise PermissionDeniedError(
                f"a page of {origin[:100]!r} may not use this server; where that is its own name behind a proxy, add it to "
                "HARNESS_ALLOWED_HOSTS"
            )

    def _is_own(self, origin: str, host: Authority) -> bool:
        scheme, separator, rest = origin.partition("://")
        parsed = Authority.parse(rest) if separator else None
        if parsed is None or scheme not in _DEFAULT_PORTS:
            return False
        if parsed.host in self.trusted:
            return True
        default = _DEFAULT_PORTS[scheme]
        return (parsed.host, parsed.port or default) == (host.host, host.port or default)


HOST_RULES = web.AppKey("host_rules", HostRules)


@web.middleware
async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests by their Host and Origin, whatever they ask for."""
    if request.path not in OPEN_PATHS:
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        if len(hosts) > 1 or len(origins) > 1:
            raise PermissionDeniedError("the header Host or Origin is given twice; give it once")
        request.app[HOST_RULES].check(hosts[0] if hosts else None, origins[0] if origins else None)
    return await handler(request)
