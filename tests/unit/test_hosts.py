from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import PermissionDeniedError
from harness.settings import Settings
from harness_server.hosts import Authority, HostRules

LOCAL = HostRules.of(Settings(host="127.0.0.1"))
BEHIND_A_PROXY = HostRules.of(Settings(host="127.0.0.1", allowed_hosts="Harness.example.org, [2001:db8::1]"))
PUBLIC = HostRules.of(Settings(host="0.0.0.0"))
PUBLIC_BY_NAME = HostRules.of(Settings(host="10.0.0.5", allowed_hosts="harness.example.org"))

OWN_HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.0.0.1.:8000", "[::1]:8000", "[::1]"]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1 evil.example",
    "127.0.0.1,evil.example",
    "http://127.0.0.1",
    "127.0.0.1/",
    "127.0.0.1:99999",
    "127.0.0.1:8000:8000",
    "127.1",
    "0.0.0.0",
    "[::]",
    "::1",
    "2130706433",
    "",
    " ",
    "\n",
]


def is_let_in(rules: HostRules, host: str | None, origin: str | None = None) -> bool:
    try:
        rules.check(host, origin)
    except PermissionDeniedError:
        return False
    return True


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_a_server_of_this_machine_goes_by_the_machines_names(host: str) -> None:
    assert is_let_in(LOCAL, host)
    assert is_let_in(BEHIND_A_PROXY, host)


@pytest.mark.parametrize("host", [*FOREIGN_HOSTS, None])
def test_a_name_that_somebody_points_at_this_machine_is_not_its_own(host: str | None) -> None:
    assert not is_let_in(LOCAL, host)
    assert not is_let_in(BEHIND_A_PROXY, host)


@pytest.mark.parametrize("host", ["harness.example.org", "HARNESS.example.org.:443", "[2001:db8::1]:8000"])
def test_names_behind_a_proxy_are_those_of_the_settings(host: str) -> None:
    assert is_let_in(BEHIND_A_PROXY, host)
    assert not is_let_in(LOCAL, host)
    assert not is_let_in(BEHIND_A_PROXY, f"sub.{host}")


def test_a_server_that_others_reach_goes_by_any_name_unless_some_are_said() -> None:
    assert is_let_in(PUBLIC, "anything.example")
    assert not is_let_in(PUBLIC, "no host")
    assert is_let_in(PUBLIC_BY_NAME, "10.0.0.5:8000")
    assert is_let_in(PUBLIC_BY_NAME, "harness.example.org")
    assert not is_let_in(PUBLIC_BY_NAME, "anything.example")


def test_an_address_of_the_loopback_network_is_a_name_too() -> None:
    assert is_let_in(HostRules.of(Settings(host="127.0.0.9")), "127.0.0.9:8000")
    assert not is_let_in(LOCAL, "127.0.0.9:8000")
    assert is_let_in(HostRules.of(Settings(host="::1")), "[::1]:8000")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("harness.example.org", "https://harness.example.org"),
        ("127.0.0.1:8000", "https://harness.example.org"),
    ],
)
def test_the_servers_own_pages_may_use_it(host: str, origin: str) -> None:
    assert is_let_in(BEHIND_A_PROXY, host, origin)


@pytest.mark.parametrize("rules", [LOCAL, BEHIND_A_PROXY, PUBLIC])
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:8000",
        "null",
        "",
        "http://localhost:3000",
        "http://localhost:8000",
        "http://127.0.0.1",
        "http://127.0.0.1:8000.evil.example",
        "http://127.0.0.1:8000@evil.example",
        "http://127.0.0.1:8000/",
        "file://127.0.0.1:8000",
        "chrome-extension://127.0.0.1:8000",
        "127.0.0.1:8000",
        "http://127.0.0.1:8000 http://evil.example",
    ],
)
def test_other_pages_may_not(rules: HostRules, origin: str) -> None:
    assert not is_let_in(rules, "127.0.0.1:8000", origin)


@given(st.text(max_size=60))
def test_a_host_is_read_without_a_crash_and_never_taken_for_this_machine(text: str) -> None:
    expected = text.lower().partition(":")[0].removesuffix(".") in {"localhost", "127.0.0.1"}
    assert is_let_in(LOCAL, text) <= (expected or text.lower().startswith("[::1]"))
    parsed = Authority.parse(text)
    if parsed is not None:
        assert not set(parsed.host) & set(" /@,\r\n")
