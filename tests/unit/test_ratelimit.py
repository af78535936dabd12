from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.testing import FakeClock
from harness_server.ratelimit import TokenBuckets, peer_key


def make(clock: FakeClock, **options: float) -> TokenBuckets:
    values = {"per_second": 2.0, "burst": 3, "max_buckets": 100} | options
    return TokenBuckets(
        per_second=values["per_second"],
        burst=int(values["burst"]),
        max_buckets=int(values["max_buckets"]),
        monotonic=clock.monotonic,
    )


async def test_a_burst_is_granted_and_then_so_many_a_second() -> None:
    clock = FakeClock()
    buckets = make(clock)

    assert [buckets.take("a").is_granted for _ in range(4)] == [True, True, True, False]
    assert buckets.take("a").retry_after_seconds == 0.5
    await clock.advance(0.5)
    assert [buckets.take("a").is_granted for _ in range(2)] == [True, False]
    await clock.advance(3600)
    assert [buckets.take("a").is_granted for _ in range(4)] == [True, True, True, False]


async def test_clients_are_counted_apart() -> None:
    buckets = make(FakeClock(), burst=1)

    assert buckets.take("a").is_granted
    assert buckets.take("b").is_granted
    assert not buckets.take("a").is_granted


async def test_looking_takes_nothing() -> None:
    buckets = make(FakeClock(), burst=1)

    assert buckets.look("a").is_granted
    assert buckets.take("a").is_granted
    assert not buckets.look("a").is_granted


async def test_as_many_buckets_are_kept_as_was_said() -> None:
    buckets = make(FakeClock(), burst=1, max_buckets=10)
    for number in range(1000):
        buckets.take(number)
        buckets.take("often")

    assert len(buckets) == 10
    # The one used last is the last to go.
    assert not buckets.take("often").is_granted


async def test_what_is_left_is_told_in_headers() -> None:
    buckets = make(FakeClock(), per_second=10, burst=100)

    assert buckets.take("a").headers() == {
        "RateLimit-Policy": '"requests";q=100;w=10',
        "RateLimit": '"requests";r=99;t=1',
    }


@given(st.lists(st.floats(0, 10), max_size=60))
async def test_never_more_is_granted_than_the_burst_and_the_rate(waits: list[float]) -> None:
    clock = FakeClock()
    buckets = make(clock)
    granted = 0
    for wait in waits:
        await clock.advance(wait)
        granted += buckets.take("a").is_granted

    assert granted <= 3 + 2 * sum(waits) + 1e-6


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_client_has_one_key_for_all_addresses_that_are_its_own(address: str | None, key: str) -> None:
    assert peer_key(address) == key
