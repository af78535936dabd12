"""Who asks, and whether they may: bearer tokens (RFC 6750), and the rights of whoever sits at the machine without any."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from aiohttp import web

from harness.audit import LOCAL
from harness.errors import AuthenticationError, PermissionDeniedError, RateLimitedError, StoreError
from harness.ports import Clock, Store
from harness.settings import Settings
from harness.tokens import TOUCH_SECONDS, ApiToken, Scope, TokenText, hash_secret
from harness_server.ratelimit import Allowance, TokenBuckets, peer_key

logger = logging.getLogger(__name__)

#: Wrong tokens that one address may show at once, and how many more in each second.
FAILURES_AT_ONCE = 20
FAILURES_PER_SECOND = 0.5
#: Secrets that were right before, by their hashes: their holders are not held up by what others at their address do.
MAX_KNOWN = 1000

#: The hash of no secret, compared with where there is no token, so that this takes as long.
_NO_HASH = "0" * 64

#: What the client of a request has left, for the answer's headers.
ALLOWANCE = web.RequestKey("allowance", Allowance)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    #: The address that the connection comes from; a proxy's, where there is one.
    peer: str
    #: None: somebody at this machine, of whom no token is asked.
    token: ApiToken | None

    @property
    def scope(self) -> Scope:
        """What they may do."""
        return Scope.ADMIN if self.token is None else Scope.of(self.token.scope)

    @property
    def actor(self) -> str:
        """What the audit log calls them."""
        return LOCAL if self.token is None else self.token.name

    @property
    def key(self) -> object:
        """What they are counted by."""
        return peer_key(self.peer) if self.token is None else self.token.id

    def check(self, scope: Scope) -> None:
        """Refuse what their token does not reach to.

        Raises:
            PermissionDeniedError: Naming the scope that it takes.
        """
        if self.scope < scope:
            raise PermissionDeniedError(
                f"this takes a token with the scope {scope.name.lower()}, and the token {self.actor!r} has "
                f"{self.scope.name.lower()}; make one: harness tokens create NAME --scope {scope.name.lower()}"
            )


class Gate:
    """Lets requests in."""

    def __init__(self, store: Store, *, clock: Clock, settings: Settings) -> None:
        """Ask an open store, which stays the caller's."""
        self._store = store
        self._is_loopback = settings.is_loopback
        self._asks_for_tokens = False
        self._known: OrderedDict[str, None] = OrderedDict()
        self._failures = TokenBuckets(
            per_second=FAILURES_PER_SECOND, burst=FAILURES_AT_ONCE, monotonic=clock.monotonic
        )
        #: The connections of requests under way, by the ids of their tokens. One token leaves half of all to others.
        self._under_way: dict[int, list[asyncio.Transport | None]] = {}
        self._max_under_way = max(1, settings.max_connections // 2)
        self._requests = None
        if settings.rate_limit_per_second > 0:
            self._requests = TokenBuckets(
                per_second=settings.rate_limit_per_second,
                burst=settings.rate_limit_burst,
                monotonic=clock.monotonic,
            )

    async def admit(self, request: web.Request) -> Principal:
        """Return who asks, and count the request; what they may do is theirs to `Principal.check`.

        Raises:
            AuthenticationError: A token is needed, and the request has none that is valid.
            RateLimitedError: They ask too often, or have shown too many wrong tokens.
        """
        principal = await self._identify(request)
        if self._requests is not None:
            allowance = request[ALLOWANCE] = self._requests.take(principal.key)
            if not allowance.is_granted:
                raise RateLimitedError(
                    f"more than {allowance.per_second:g} requests a second; wait "
                    f"{math.ceil(allowance.retry_after_seconds)} s, or raise HARNESS_RATE_LIMIT_PER_SECOND",
                    retry_after_seconds=allowance.retry_after_seconds,
                )
        return principal

    @contextmanager
    def under_way(self, principal: Principal, connection: asyncio.Transport | None) -> Iterator[None]:
        """Count a request as under way until the block is left: streams and waits hold connections for minutes.

        Raises:
            RateLimitedError: Its token has as many under way as one may.
        """
        if principal.token is None:
            yield
            return
        key = principal.token.id
        connections = self._under_way.setdefault(key, [])
        if len(connections) >= self._max_under_way:
            raise RateLimitedError(
                f"{self._max_under_way} requests with this token are under way, streams and waits among them; end some, or "
                "raise HARNESS_MAX_CONNECTIONS, of which one token gets half",
                retry_after_seconds=1.0,
            )
        connections.append(connection)
        try:
            yield
        finally:
            connections.remove(connection)
            if not connections:
                del self._under_way[key]

    async def cut_off(self) -> None:
        """Close the connections of requests under way whose tokens were revoked, or have expired, since they began.

        Raises:
            StoreError: It could not be asked; call this again.
        """
        for token_id in tuple(self._under_way):
            found = await self._store.find_token(token_id)
            if found is not None and found[0].is_valid(await self._store.now()):
                continue
            connections = self._under_way.get(token_id, [])
            extra = {"action": "cut_off", "token_id": token_id, "connections": len(connections)}
            logger.info("token %d is not valid any more: its requests end", token_id, extra=extra)
            for connection in connections:
                if connection is not None:
                    connection.abort()

    async def _identify(self, request: web.Request) -> Principal:
        peer = request.remote or ""
        if not await self._is_closed():
            # Both are checked: a server that others reach is started with a token, but its store may be another by now.
            if self._is_loopback and _is_loopback(peer):
                return Principal(peer, None)
            raise AuthenticationError(
                "there is no token yet, and without one only this machine may ask; make one there: "
                "harness tokens create NAME --scope admin"
            )
        text = _bearer(request)
        found = TokenText.parse(text)
        token = None
        if found is not None:
            token = await self._find(found, peer)
        if token is None:
            self._count_failure(peer, found)
            raise AuthenticationError(
                "the token is not valid: mistyped, expired, revoked or of another store; make a new one: "
                "harness tokens create NAME"
            )
        await self._touch(token)
        return Principal(peer, token)

    async def _is_closed(self) -> bool:
        # Once there was a token it stays so, also when all are revoked or have expired: an expiry opens no doors.
        if not self._asks_for_tokens:
            self._asks_for_tokens = await self._store.has_tokens()
        return self._asks_for_tokens

    async def _find(self, text: TokenText, peer: str) -> ApiToken | None:
        secret_hash = hash_secret(text.secret)
        if secret_hash not in self._known:
            self._check_failures(peer)
        token, stored_hash = await self._store.find_token(text.token_id) or (None, _NO_HASH)
        is_right = text.matches(stored_hash)
        if token is None or not is_right or not token.is_valid(await self._store.now()):
            return None
        self._known[secret_hash] = None
        self._known.move_to_end(secret_hash)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return token

    def _check_failures(self, peer: str) -> None:
        allowance = self._failures.look(peer_key(peer))
        if not allowance.is_granted:
            raise RateLimitedError(
                f"too many wrong tokens came from {peer}; wait {math.ceil(allowance.retry_after_seconds)} s",
                retry_after_seconds=allowance.retry_after_seconds,
            )

    def _count_failure(self, peer: str, found: TokenText | None) -> None:
        self._check_failures(peer)
        self._failures.take(peer_key(peer))
        # The number alone: the rest of a text that is almost right is a secret.
        extra = {"action": "token_refused", "peer": peer}
        if found is not None:
            extra["token_id"] = str(found.token_id)
        logger.warning("a token that is not valid was shown by %s", peer, extra=extra)

    async def _touch(self, token: ApiToken) -> None:
        now = await self._store.now()
        if token.last_used_at is not None and (now - token.last_used_at).total_seconds() < TOUCH_SECONDS:
            return
        try:
            await self._store.touch_token(token.id)
        except StoreError as error:
            # What can be read without it need not fail for it.
            extra = {"action": "touch_failed", "code": error.code}
            logger.warning("the last use of token %d was not noted: %s", token.id, error.message, extra=extra)


GATE = web.AppKey("gate", Gate)


def _bearer(request: web.Request) -> str:
    """Return the token that a request shows.

    Raises:
        AuthenticationError: It shows none.
    """
    text = parse_bearer(request.headers.getall("Authorization", []))
    if text is None:
        raise AuthenticationError(
            "this takes a token, in the header Authorization: Bearer …; make one: harness tokens create NAME"
        )
    return text


def parse_bearer(headers: list[str]) -> str | None:
    """Return the token of an Authorization header (RFC 6750, section 2.1); None without exactly one such header."""
    if len(headers) != 1:
        return None
    scheme, _, text = headers[0].partition(" ")
    return text.strip(" ") or None if scheme.lower() == "bearer" else None


def _is_loopback(peer: str) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_loopback
