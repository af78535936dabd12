"""What `harness doctor` says about how an engine holds containers in: its versions, runtimes and security options."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cli.findings import ProblemError, WorryError
from harness.sandbox.advisories import (
    CONTAINERD,
    ENGINE,
    RUNC,
    EngineComponent,
    find_advisories,
    is_of_a_distribution,
)
from harness.sandbox.hostconfig import Isolation
from harness.sandbox.inspection import EngineFacts

_SHOWN = {ENGINE: "Docker", CONTAINERD: "containerd", RUNC: "runc"}
#: Names under which an engine has runc.
_RUNC_NAMES = frozenset(
    {"runc", "io.containerd.runc.v2", "io.containerd.runc.v1", "io.containerd.runtime.v1.linux"}
)
_UPGRADE = "upgrade the engine with its containerd and runc"


def describe_versions(facts: EngineFacts, isolation: Isolation) -> str:
    """Return the versions of those parts that contain a container.

    Raises:
        WorryError: One of them has known escapes.
    """
    parts = [part for part in facts.components if part.name in _SHOWN]
    versions = ", ".join(f"{_SHOWN[part.name]} {part.version or 'of an unknown version'}" for part in parts)
    if (isolation.runtime or facts.default_runtime) not in _RUNC_NAMES:
        # No agent runs in it.
        parts = [part for part in parts if part.name != RUNC]
    found = find_advisories(parts)
    if not found:
        return f"{versions}; no known escape"
    known = "; ".join(
        f"{_SHOWN[part.name]} has {_listed(advisory.cves)} (takes {advisory.takes}; fixed in {_listed(advisory.fixed)})"
        for part, advisory in found
    )
    packages = {part.name: part for part, _ in found if is_of_a_distribution(part)}
    if not packages:
        raise WorryError(f"{versions}; known escapes: {known}", _UPGRADE)
    names = _listed([_package(part) for part in packages.values()])
    raise WorryError(
        f"{versions}; known escapes, unless the distribution patched them under these versions: {known}",
        f"look for the CVEs in the changelog of the distribution's {names} (apt changelog, rpm -q --changelog); else "
        f"{_UPGRADE}",
    )


def describe_runtime(facts: EngineFacts, isolation: Isolation) -> str:
    """Return which runtime containers are made with.

    Raises:
        ProblemError: The engine does not have it.
    """
    if isolation.runtime is None:
        return f"{facts.default_runtime}, the engine's default"
    # Not every engine lists those that it finds by the name of their shim.
    if isolation.runtime not in facts.runtimes and not isolation.runtime.startswith("io.containerd."):
        raise ProblemError(
            f"the engine does not have the runtime that HARNESS_SANDBOX_RUNTIME={isolation.runtime} asks for; it has "
            f"{', '.join(facts.runtimes) or 'none'}",
            'install it, name it in the engine\'s daemon.json under "runtimes", and restart the engine; or unset '
            "HARNESS_SANDBOX_RUNTIME",
        )
    return f"{isolation.runtime}, set by HARNESS_SANDBOX_RUNTIME"


def describe_security(facts: EngineFacts, isolation: Isolation) -> str:
    """Return what else holds containers in on this machine, and what could.

    Raises:
        ProblemError: System calls are not filtered, or a profile is asked for that nobody would enforce.
    """
    names = [option.removeprefix("name=").split(",")[0] for option in facts.security_options]
    if "seccomp" not in names:
        raise ProblemError(
            f"the engine filters no system calls (security options: {', '.join(names) or 'none'})",
            "use an engine and a kernel with seccomp; the profile is the product's own",
        )
    profile = isolation.apparmor_profile
    if profile is not None and "apparmor" not in names:
        # The engine takes the name without a word, and enforces nothing.
        raise ProblemError(
            f"HARNESS_APPARMOR_PROFILE={profile} is set, and the engine has no AppArmor, so nothing enforces it",
            "boot with apparmor=1 security=apparmor and restart the engine, or unset HARNESS_APPARMOR_PROFILE",
        )
    module = "AppArmor" if "apparmor" in names else "SELinux" if "selinux" in names else None
    parts = [
        "system calls are filtered",
        f"{module} is on" + (f", with the profile {profile}" if profile else "")
        if module
        else "no AppArmor or SELinux",
    ]
    if facts.rootless:
        parts.append("rootless")
    elif "userns" in names:
        parts.append("user namespaces")
    else:
        parts.append("no user namespaces, so root in a container would be root (agents are not)")
    return "; ".join(parts)


def _package(part: EngineComponent) -> str:
    # Of itself the engine names a commit there.
    return f"{_SHOWN[part.name]} {part.version if part.name == ENGINE else part.build or part.version}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
