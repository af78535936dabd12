"""Versions of the engine, containerd and runc out of whose containers a way to the machine is known. Pure.

Listed is what reaches the machine out of a container that a Docker Engine made. Not listed are holes in what the product
does not use: containerd's CRI (CVE-2022-23648, CVE-2026-53488), BuildKit (CVE-2024-23651 to 23653), `runc exec` (CVE-2022-29162);
those that take a hostile user on the machine itself (CVE-2024-25621); and those that Docker's own way of making containers
closes (CVE-2019-19921, CVE-2026-41579). Versions are those of the projects' advisories and release notes, as far as
these were read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Names as the engine gives them in ``/version``.
ENGINE, CONTAINERD, RUNC = "Engine", "containerd", "runc"


class Version(NamedTuple):
    """An upstream version, in upstream's order: a release candidate comes before its release."""

    major: int
    minor: int
    patch: int
    #: The last for a release.
    stage: int
    #: Of the release candidate, say; 0 for a release.
    number: int


@dataclass(frozen=True, slots=True)
class EngineComponent:
    """One part of an engine, as it says itself."""

    name: str
    #: For example ``1.3.3``, or ``1.1.5+ds1`` as Debian has it.
    version: str
    #: What it was built from: a commit, or the whole version of a distribution's package.
    build: str = ""


@dataclass(frozen=True, slots=True)
class Advisory:
    """A known way out."""

    component: str
    cves: tuple[str, ...]
    #: The first version with the fix, for each line of versions that has one.
    fixed: tuple[str, ...]
    #: What somebody needs to use it.
    takes: str
    source: str
    #: The first version with the hole; None: all before.
    introduced: str | None = None
    #: Packages of distributions that have the fix under an older version.
    patched_packages: tuple[str, ...] = ()


ADVISORIES = (
    Advisory(
        RUNC,
        ("CVE-2019-5736",),
        ("1.0.0-rc7",),
        "root in a container",
        "https://github.com/containerd/containerd/pull/3181",
    ),
    Advisory(
        RUNC,
        ("CVE-2021-30465",),
        ("1.0.0-rc95",),
        "containers with volumes of the attacker's choice",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-c3xm-pvg7-gh7r",
    ),
    Advisory(
        RUNC,
        ("CVE-2023-27561", "CVE-2023-28642"),
        ("1.1.5",),
        "an image of the attacker's, with a link for /proc; AppArmor or SELinux is then passed by",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-g2j6-57v7-gm8c",
        introduced="1.0.0-rc95",
    ),
    Advisory(
        RUNC,
        ("CVE-2024-21626",),
        ("1.1.12",),
        "an image of the attacker's",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-xr7r-f8xq-vfvv",
        # Debian's changelog of that package.
        patched_packages=("1.1.5+ds1-1+deb12u1",),
    ),
    Advisory(
        RUNC,
        ("CVE-2024-45310",),
        ("1.1.14", "1.2.0-rc.3"),
        "two containers that share a volume; it makes empty files on the machine, no more",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-jfvp-7x6p-h2pv",
    ),
    Advisory(
        RUNC,
        ("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"),
        ("1.2.8", "1.3.3", "1.4.0-rc.3"),
        "images, image builds or volumes of the attacker's choice",
        "https://github.com/opencontainers/runc/security/advisories/GHSA-9493-h29p-rfm2",
    ),
    Advisory(
        CONTAINERD,
        ("CVE-2020-15257",),
        ("1.3.9", "1.4.3"),
        "root in a container on the machine's own network",
        "https://github.com/containerd/containerd/security/advisories/GHSA-36xw-fx78-c5r4",
    ),
    Advisory(
        ENGINE,
        ("CVE-2026-41567", "CVE-2026-41568", "CVE-2026-42306"),
        ("29.5.1",),
        "somebody who uses docker cp on the attacker's container",
        "https://github.com/moby/moby/security/advisories/GHSA-x86f-5xw2-fm2r",
    ),
)

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-~.]?(alpha|beta|rc)[.-]?(\d+))?", re.ASCII)
_STAGES = ("alpha", "beta", "rc")
_DISTRIBUTION = re.compile(r"[+~](ds|dfsg|deb|rhaos)|ubuntu|\.(el|fc|amzn|azl)\d", re.ASCII)
_DEBIAN_UPDATE = re.compile(r"(.+\+deb\d+u)(\d+).*", re.ASCII)


def parse_version(text: str) -> Version | None:
    """Return the upstream version in a version's text; None where there is none.

    What a distribution adds (``+ds1``, ``-0ubuntu1~22.04.1``, ``-1.el9``) says nothing about upstream's, and is left out.
    """
    match = _VERSION.match(text)
    if match is None:
        return None
    major, minor, patch, stage, number = match.groups()
    rank = _STAGES.index(stage) if stage else len(_STAGES)
    return Version(int(major), int(minor), int(patch or 0), rank, int(number or 0))


def is_of_a_distribution(component: EngineComponent) -> bool:
    """Tell whether a distribution built it, which may have added fixes under an old version."""
    return _DISTRIBUTION.search(f"{component.version} {component.build}") is not None


def find_advisories(components: Iterable[EngineComponent]) -> Sequence[tuple[EngineComponent, Advisory]]:
    """Return what is known about components, as far as their versions tell."""
    return [
        (component, advisory)
        for component in components
        for advisory in ADVISORIES
        if advisory.component == component.name and _concerns(advisory, component)
    ]


def _concerns(advisory: Advisory, component: EngineComponent) -> bool:
    version = parse_version(component.version)
    if version is None or any(_has_update(component, package) for package in advisory.patched_packages):
        return False
    if advisory.introduced is not None and version < _known(advisory.introduced):
        return False
    fixed = sorted(map(_known, advisory.fixed))
    # A line without a fix of its own, older or between those that have one, never got it.
    line = next((first for first in fixed if first[:2] == version[:2]), fixed[-1])
    return version < line


def _known(text: str) -> Version:
    version = parse_version(text)
    assert version is not None, text
    return version


def _has_update(component: EngineComponent, package: str) -> bool:
    """Tell whether a component is a Debian package of that version, or a later update of the same."""
    for text in (component.build, component.version):
        ours, wanted = _DEBIAN_UPDATE.fullmatch(text), _DEBIAN_UPDATE.fullmatch(package)
        if ours and wanted and ours[1] == wanted[1] and int(ours[2]) >= int(wanted[2]):
            return True
    return False
