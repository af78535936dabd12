"""Clients without a token that reaches, and pages of other sites."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.abuse.clients.target import OF_A_CASE, ClientCase, Reply, Session, Target, counted, require

from harness.models import render_instant
from harness.tokens import Scope, ScopeName, TokenText, new_secret
from harness_server.auth import FAILURES_AT_ONCE, FAILURES_PER_SECOND
from harness_server.endpoint import Endpoint
from harness_server.routes import ENDPOINTS

_GROUP = "clients: access"
#: Every endpoint that the server declares.
ALL: tuple[Endpoint, ...] = tuple(itertools.chain(*ENDPOINTS.values()))
BELOW: dict[Scope, tuple[ScopeName, ...]] = {
    Scope.READ: (),
    Scope.RUN: ("read",),
    Scope.ADMIN: ("read", "run"),
}

_GUESSES = 3000
#: Of each kind of wrong token, for the comparison of times.
_SAMPLES = 1000


def path_of(endpoint: Endpoint, target: Target) -> str:
    """Return an endpoint's path with what is there."""
    path = endpoint.path.replace("{agent_id}", str(target.agent_id)).replace("{secret_name}", "API_KEY")
    return re.sub(r"\{\w+\}", "1", path)


async def _ask(session: Session, endpoint: Endpoint, target: Target, **given: Any) -> Reply:
    """Ask for what an endpoint does, as it would be asked by whoever may."""
    if endpoint.body is not None:
        given["json"] = endpoint.example or {}
    return await session.ask(endpoint.method, path_of(endpoint, target), **given)


async def _guess(target: Target) -> str:
    source, lines = target.source(), len(target.log().splitlines())
    audit, began = target.count_audit(), time.monotonic()
    known = TokenText.parse(target.tokens["admin"])
    assert known
    guesses = (
        lambda: TokenText(known.token_id, new_secret()).render(),
        lambda: TokenText(random.randint(1, 10**6), new_secret()).render(),
        lambda: random.choice(("admin", "agh_1_", "a" * 10_000, "agh_1_%00", "null", "' OR 1=1", "é")),
    )
    seen: list[int] = []
    async with (
        target.session(None, source=source) as session,
        target.session("read", source=source) as known_one,
    ):

        async def guess(share: int) -> None:
            for number in range(share):
                reply = await session.ask("GET", "/api/agents", token=guesses[number % 3]())
                seen.append(reply.status)

        async def go_on() -> None:
            while True:
                status = (await known_one.ask("GET", "/api/agents")).status
                require(status == 200, f"a token that was right before was answered {status}")
                await asyncio.sleep(0.02)

        going_on = asyncio.create_task(go_on())
        await asyncio.gather(*(guess(_GUESSES // 20) for _ in range(20)))
        require(not going_on.done(), "a token that was right before was refused")
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
        async with target.session("run") as elsewhere:
            require((await elsewhere.ask("GET", "/api/agents")).status == 200, "others were held up")
    seconds = time.monotonic() - began
    written = target.log().splitlines()[lines:]
    allowed = FAILURES_AT_ONCE + FAILURES_PER_SECOND * seconds + 1
    # Of 10,000 letters too many for a header, aiohttp itself says 400.
    require({*seen} <= {400, 401, 429}, counted(seen))
    require(seen.count(401) <= allowed, f"{seen.count(401)} guesses were looked at in {seconds:.0f} s")
    require(target.count_audit() == audit, "the audit log has lines of it")
    require(sum("token_refused" in line for line in written) <= allowed, f"{len(written)} lines of log")
    require(known.secret not in "".join(written), "the log has a secret")
    return f"{counted(seen)}; {len(written)} lines of log, none of audit; other tokens, also from there: 200"


def _z_of_ranks(first: list[float], second: list[float]) -> float:
    """Return by how many standard deviations the ranks of two samples differ from chance (Mann and Whitney)."""
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks = sum(rank for rank, (_, which) in enumerate(ranked, 1) if which == 0)
    n, m = len(first), len(second)
    mean, deviation = n * (n + m + 1) / 2, math.sqrt(n * m * (n + m + 1) / 12)
    return (ranks - mean) / deviation


async def _time(target: Target) -> str:
    right = TokenText.parse(target.tokens["admin"])
    assert right

    def near() -> str:
        return TokenText(right.token_id, right.secret[:-1] + random.choice("0123456789")).render()

    def far() -> str:
        return TokenText(right.token_id, new_secret()).render()

    near_seconds: list[float] = []
    far_seconds: list[float] = []
    # One address may be wrong so often; from then on nothing is looked up.
    per_address = FAILURES_AT_ONCE - 2
    for _ in range(2 * _SAMPLES // per_address):
        kinds = [(near, near_seconds), (far, far_seconds)] * (per_address // 2)
        random.shuffle(kinds)
        async with target.session(None) as session:
            # The connection's own beginning is not what is measured.
            await session.ask("GET", "/healthz")
            for make, seconds in kinds:
                text = make()
                if text == target.tokens["admin"]:
                    continue
                began = time.perf_counter()
                reply = await session.ask("GET", "/api/agents", token=text)
                seconds.append(time.perf_counter() - began)
                require(reply.status == 401, f"answered {reply.status}")
    z = _z_of_ranks(near_seconds, far_seconds)
    medians = [statistics.median(seconds) * 1000 for seconds in (near_seconds, far_seconds)]
    # By chance alone once in 100,000 runs.
    require(abs(z) < 4.5, f"told apart: medians {medians[0]:.3f} and {medians[1]:.3f} ms, z {z:.1f}")
    return (
        f"medians {medians[0]:.2f} and {medians[1]:.2f} ms, {len(near_seconds)} + {len(far_seconds)} answers; "
        f"by rank {abs(z):.1f} standard deviations apart"
    )


async def _dead(target: Target) -> str:
    async with target.session() as admin:
        soon = render_instant(datetime.now(UTC) + timedelta(seconds=1.5))
        made = [
            (
                await admin.ask("POST", "/api/tokens", json={"name": OF_A_CASE, "scope": "admin", **more})
            ).json()
            for more in ({}, {"expires_at": soon})
        ]
        for one in made:
            require(
                (await admin.ask("GET", "/api/agents", token=one["text"])).status == 200, "it never was valid"
            )
        revoked, expired = made
        path = f"/api/tokens/{revoked['token']['id']}"
        require((await admin.ask("DELETE", path)).status == 200, "it was not revoked")
        await asyncio.sleep(2)
        seen = []
        for one in (revoked, expired):
            for endpoint in ALL:
                reply = await _ask(admin, endpoint, target, token=one["text"])
                # Which of the two it is, nobody is told.
                require(reply.code in ("unauthenticated", "rate_limited"), f"{endpoint.name}: {reply.body!r}")
                seen.append(reply.status)
    return counted(seen)


async def _lesser(target: Target) -> str:
    audit, seen = target.count_audit(), []
    for endpoint in ALL:
        for scope in BELOW[endpoint.scope]:
            async with target.session(scope) as session:
                reply = await _ask(session, endpoint, target)
                require(reply.status == 403, f"{endpoint.name} with {scope}: {reply.status}")
                seen.append(reply.status)
    kept = target.count_audit() - audit
    require(kept <= 2 * 20 + 5, f"{kept} lines of audit")
    return f"{counted(seen)}; {kept} lines of audit, which keeps some of each token's"


async def _none(target: Target) -> str:
    seen = []
    right = target.tokens["admin"]
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"params": {"token": right}},
        {"params": {"access_token": right}},
        {"headers": {"Cookie": f"token={right}; access_token={right}"}},
        {"headers": {"Authorization": right}},
        {"headers": {"Authorization": f"Basic {right}"}},
        {"headers": {"X-API-Key": right}},
        {"headers": {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1"}},
        {
            "headers": {
                "X-HTTP-Method-Override": "GET",
                "X-Original-URL": "/healthz",
                "X-Rewrite-URL": "/healthz",
            }
        },
    )
    async with target.session(None) as session:
        for endpoint in ALL:
            for way in ways:
                reply = await _ask(session, endpoint, target, **way)
                require(reply.status == 401, f"{endpoint.name}: {reply.status}")
                seen.append(reply.status)
        twice = [("Authorization", f"Bearer {right}"), ("Authorization", "Bearer x")]
        raw = target.head(
            "GET /api/agents HTTP/1.1", *(": ".join(one) for one in twice), "Connection: close", scope=None
        )
        answer = await target.exchange(raw + b"\r\n")
        require(b" 401 " in answer.splitlines()[0] or b" 400 " in answer.splitlines()[0], f"{answer[:60]!r}")
    return counted(seen)


async def _foreign(target: Target) -> str:
    port = target.netloc.rpartition(":")[2]
    ways = (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{port}"},
        {"Host": f"127.0.0.1.evil.example:{port}"},
        {"Host": f"localhost:{port}@evil.example"},
        {"Host": "169.254.169.254"},
        {"Origin": "http://evil.example"},
        {"Origin": f"http://127.0.0.1.evil.example:{port}"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{int(port) % 65535 + 1}"},
    )
    seen = []
    async with target.session() as session:
        for endpoint in ALL:
            for headers in ways:
                reply = await _ask(session, endpoint, target, headers=headers)
                require(reply.status == 403, f"{endpoint.name} with {headers}: {reply.status}")
                seen.append(reply.status)
    return f"{counted(seen)}, with a token that may do everything"


CASES = (
    ClientCase(
        _GROUP,
        f"{_GUESSES:,} guessed tokens from one address",
        "401, soon 429; logs do not fill; tokens that were right before go on",
        _guess,
    ),
    ClientCase(
        _GROUP,
        "tell a token that is right but for one character by the time of its answer",
        "times as of one that is all wrong",
        _time,
    ),
    ClientCase(_GROUP, "a revoked token and an expired one, at every endpoint", "401, later 429", _dead),
    ClientCase(_GROUP, "a token of a lesser scope, at every endpoint that takes more", "403", _lesser),
    ClientCase(
        _GROUP, "no token, or one in a cookie, a query, another header, at every endpoint", "401", _none
    ),
    ClientCase(_GROUP, "a foreign Host or Origin (DNS rebinding), at every endpoint", "403", _foreign),
)
