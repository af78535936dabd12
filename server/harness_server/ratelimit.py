"""How many requests one client may make: token buckets, as many as there are clients, in bounded memory."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

#: Buckets kept at most. The one left alone the longest goes first; by then it is most likely full, and full ones need
#: not be kept.
MAX_BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a client has left."""

    is_granted: bool
    remaining: int
    #: Until one more request is granted; 0 if one is now.
    retry_after_seconds: float
    burst: int
    per_second: float

    def headers(self) -> dict[str, str]:
        """Render it for clients that keep themselves in bounds (draft-ietf-httpapi-ratelimit-headers-10)."""
        window = math.ceil(self.burst / self.per_second)
        reset = math.ceil((self.burst - self.remaining) / self.per_second)
        return {
            "RateLimit-Policy": f'"requests";q={self.burst};w={window}',
            "RateLimit": f'"requests";r={self.remaining};t={reset}',
        }


class TokenBuckets:
    """A bucket of `burst` requests for each key, which fills up again by `per_second`."""

    def __init__(
        self, *, per_second: float, burst: int, monotonic: Callable[[], float], max_buckets: int = MAX_BUCKETS
    ) -> None:
        """Begin with every bucket full.

        Args:
            per_second: More than 0.
            burst: At least 1.
            monotonic: Returns seconds.
            max_buckets: Buckets that are kept.
        """
        self._per_second = per_second
        self._burst = burst
        self._monotonic = monotonic
        self._max_buckets = max_buckets
        #: What was left, and when, by key; the one used last at the end.
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._buckets)

    def look(self, key: object) -> Allowance:
        """Return what `take` would, and take nothing."""
        return self._allowance(self._level(key))

    def take(self, key: object) -> Allowance:
        """Take one request out of a bucket, if there is one in it."""
        level = self._level(key)
        allowance = self._allowance(level)
        if allowance.is_granted:
            level -= 1
            allowance = replace(allowance, remaining=int(level))
        self._buckets[key] = (level, self._monotonic())
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_buckets:
            self._buckets.popitem(last=False)
        return allowance

    def _level(self, key: object) -> float:
        now = self._monotonic()
        level, at = self._buckets.get(key, (float(self._burst), now))
        return min(float(self._burst), level + (now - at) * self._per_second)

    def _allowance(self, level: float) -> Allowance:
        missing = max(0.0, 1.0 - level)
        return Allowance(missing == 0, int(level), missing / self._per_second, self._burst, self._per_second)


def peer_key(address: str | None) -> str:
    """Return what stands for the client at an address: of IPv6 its network, since one client has all of a /64."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "unknown"
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
