"""What `harness doctor` says about the versions of an engine's parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.sandbox.advisories import (
    CONTAINERD,
    ENGINE,
    RUNC,
    EngineComponent,
    find_advisories,
    is_of_a_distribution,
)

_SHOWN = {ENGINE: "Docker", CONTAINERD: "containerd", RUNC: "runc"}


def list_versions(components: Iterable[EngineComponent]) -> str:
    """Return the versions of those parts that contain a container."""
    return ", ".join(
        f"{_SHOWN[component.name]} {component.version or 'of an unknown version'}"
        for component in components
        if component.name in _SHOWN
    )


def describe_escapes(components: Iterable[EngineComponent]) -> tuple[str, str] | None:
    """Return what is known about those versions, and what to do; None when nothing is."""
    found = find_advisories(components)
    if not found:
        return None
    known = "; ".join(
        f"{_SHOWN[component.name]} has {_listed(advisory.cves)} (takes {advisory.takes}; fixed in "
        f"{_listed(advisory.fixed)})"
        for component, advisory in found
    )
    packaged = {component.name: component for component, _ in found if is_of_a_distribution(component)}
    upgrade = "upgrade the engine with its containerd and runc"
    if not packaged:
        return f"known escapes: {known}", upgrade
    names = " and ".join(
        f"{_SHOWN[component.name]} {component.build if component.name != ENGINE else component.version}"
        for component in packaged.values()
    )
    known = f"known escapes, unless the distribution patched them under these versions: {known}"
    changelogs = f"look for the CVEs in the changelog of the distribution's {names} (apt changelog, rpm -q --changelog)"
    return known, f"{changelogs}; else {upgrade}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
