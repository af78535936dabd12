"""Which versions have known escapes: how upstreams and distributions write them."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from harness.cli.findings import WorryError
from harness.cli.isolation import describe_versions
from harness.sandbox.advisories import (
    ADVISORIES,
    CONTAINERD,
    ENGINE,
    RUNC,
    EngineComponent,
    find_advisories,
    is_of_a_distribution,
    parse_version,
)
from harness.sandbox.hostconfig import ENGINES_OWN, Isolation
from harness.sandbox.inspection import EngineFacts


def cves_of(name: str, version: str, build: str = "") -> set[str]:
    found = find_advisories([EngineComponent(name, version, build)])
    return {cve for _, advisory in found for cve in advisory.cves}


def facts_of(*components: EngineComponent) -> EngineFacts:
    return EngineFacts(
        version="29.0.0",
        api_version="1.52",
        cgroup_version="2",
        cgroup_driver="systemd",
        storage_driver="overlay2",
        memory_limit=True,
        swap_limit=True,
        pids_limit=True,
        cpu_quota=True,
        security_options=(),
        warnings=(),
        rootless=False,
        components=components,
    )


def worry_about(*components: EngineComponent) -> WorryError:
    with pytest.raises(WorryError) as caught:
        describe_versions(facts_of(*components), ENGINES_OWN)
    return caught.value


def test_versions_come_in_upstreams_order() -> None:
    rising = [
        "1.0-rc6",
        "1.0.0-rc7",
        "1.0.0~rc93+ds1",
        "1.0.0-rc95",
        "1.0.0",
        "1.1.5+ds1",
        "1.1.12-0ubuntu2~22.04.1",
        "1.2.0-rc.2",
        "1.2.0-rc.10",
        "1.2.0",
        "v1.3.3",
        "1.4.0-beta1",
        "1.4.0-rc.3",
        "1.4.0-1.el9",
    ]
    versions = [parse_version(text) for text in rising]
    assert None not in versions
    assert all(earlier < later for earlier, later in pairwise(versions) if earlier and later)


@pytest.mark.parametrize(
    "text", ["1.1.12+ds1-5.1+b2", "1.1.12~ds1", "v1.1.12", "1.1.12-0ubuntu2", "1.1.12-ce"]
)
def test_what_a_distribution_adds_says_nothing_about_the_version(text: str) -> None:
    assert parse_version(text) == parse_version("1.1.12")


@pytest.mark.parametrize("text", ["", "unknown", "dev", "library-import", "v"])
def test_a_version_that_cannot_be_read_is_no_finding(text: str) -> None:
    assert parse_version(text) is None
    assert not cves_of(RUNC, text)


@pytest.mark.parametrize(
    ("version", "is_affected"),
    [
        ("1.0.0-rc93", True),
        ("1.1.5+ds1", True),
        ("1.1.7-0ubuntu1~22.04.1", True),
        ("1.1.11", True),
        ("1.1.12", False),
        ("1.2.0-rc.1", False),
        ("1.3.0", False),
    ],
)
def test_leaky_vessels_is_where_upstream_says_it_is(version: str, is_affected: bool) -> None:
    assert ("CVE-2024-21626" in cves_of(RUNC, version)) is is_affected


@pytest.mark.parametrize(
    ("version", "is_affected"),
    [
        ("1.1.15", True),
        ("1.2.7", True),
        ("1.2.8", False),
        ("1.2.9", False),
        ("1.3.2", True),
        ("1.3.3-0ubuntu1~24.04.3", False),
        ("1.4.0-rc.2", True),
        ("1.4.0-rc.3", False),
        ("1.4.0", False),
        ("1.5.0-rc.1", False),
    ],
)
def test_each_line_of_versions_has_its_own_fix(version: str, is_affected: bool) -> None:
    assert ("CVE-2025-31133" in cves_of(RUNC, version)) is is_affected


def test_what_came_with_a_later_version_is_not_said_of_an_earlier_one() -> None:
    assert "CVE-2023-27561" not in cves_of(RUNC, "1.0.0-rc94")
    assert "CVE-2023-27561" in cves_of(RUNC, "1.0.0-rc95")
    assert "CVE-2023-27561" in cves_of(RUNC, "1.1.4")
    assert "CVE-2023-27561" not in cves_of(RUNC, "1.1.5")


def test_a_patched_package_is_not_named_for_what_it_patched() -> None:
    assert "CVE-2024-21626" in cves_of(RUNC, "1.1.5+ds1", "1.1.5+ds1-1")
    for update in ("1.1.5+ds1-1+deb12u1", "1.1.5+ds1-1+deb12u10"):
        found = cves_of(RUNC, "1.1.5+ds1", update)
        assert "CVE-2024-21626" not in found
        assert "CVE-2025-31133" in found
    assert "CVE-2024-21626" in cves_of(RUNC, "1.1.4+ds1", "1.1.4+ds1-1+deb12u1")


def test_the_newest_versions_have_none() -> None:
    newest = [
        EngineComponent(ENGINE, "29.5.1", "9c8d1f3"),
        EngineComponent(CONTAINERD, "v2.3.5", "442cb34bda9a6a0fed82a2ca7cade05c5c749582"),
        EngineComponent(RUNC, "1.4.3", "v1.4.3-0-gc67132530367"),
        EngineComponent("docker-init", "0.19.0", "de40ad0"),
    ]
    said = describe_versions(facts_of(*newest), ENGINES_OWN)
    assert said == "Docker 29.5.1, containerd v2.3.5, runc 1.4.3; no known escape"


def test_a_finding_names_cve_fix_and_remedy() -> None:
    worry = worry_about(EngineComponent(RUNC, "1.1.11", "v1.1.11-0-g4bccb38c"))
    assert worry.detail.startswith(
        "runc 1.1.11; known escapes: runc has CVE-2024-21626 (takes an image of the attacker's; fixed in 1.1.12)"
    )
    assert "fixed in 1.2.8, 1.3.3 and 1.4.0-rc.3" in worry.detail
    assert worry.remedy == "upgrade the engine with its containerd and runc"


def test_of_a_distributions_package_it_is_said_that_it_may_be_patched() -> None:
    worry = worry_about(EngineComponent(RUNC, "1.1.5+ds1", "1.1.5+ds1-1+deb12u1"))
    assert (
        "known escapes, unless the distribution patched them under these versions: runc has" in worry.detail
    )
    assert "runc 1.1.5+ds1-1+deb12u1" in worry.remedy


def test_runcs_holes_are_no_finding_where_agents_run_in_another_runtime() -> None:
    facts = facts_of(EngineComponent(RUNC, "1.1.11"))
    assert describe_versions(facts, Isolation(runtime="runsc")) == "runc 1.1.11; no known escape"
    assert describe_versions(replace(facts, default_runtime="runsc"), ENGINES_OWN).endswith("no known escape")
    with pytest.raises(WorryError):
        describe_versions(replace(facts, default_runtime="runsc"), Isolation(runtime="runc"))


@pytest.mark.parametrize(
    ("version", "build", "is_packaged"),
    [
        ("20.10.24+dfsg1", "5d6db84", True),
        ("1.6.20~ds1", "1.6.20~ds1-1+deb12u3", True),
        ("1.1.12-0ubuntu2~22.04.1", "", True),
        ("1.1.12", "1.1.12-4.el9", True),
        ("29.5.1", "9c8d1f3", False),
        ("1.3.3", "v1.3.3-0-gd842d771", False),
    ],
)
def test_distributions_packages_are_told_from_upstreams(version: str, build: str, is_packaged: bool) -> None:
    assert is_of_a_distribution(EngineComponent("any", version, build)) is is_packaged


def test_the_table_is_well_formed() -> None:
    for advisory in ADVISORIES:
        assert advisory.component in (ENGINE, CONTAINERD, RUNC)
        assert all(re.fullmatch(r"CVE-20\d\d-\d{4,6}", cve) for cve in advisory.cves)
        assert all(parse_version(text) for text in (*advisory.fixed, advisory.introduced or "0.0"))
        assert advisory.source.startswith("https://github.com/")
