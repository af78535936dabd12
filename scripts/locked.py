"""What constraints.txt locks, and which of it an installed product runs on."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PRODUCT = "agent-harness"
#: What a user can install beside what always is.
EXTRAS = ("otel",)

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?: *; *(?P<marker>.+))?")


@dataclass(frozen=True, slots=True, order=True)
class Locked:
    """One line of constraints.txt."""

    name: str
    version: str
    #: Where it is installed at all; None: everywhere.
    marker: str | None = None

    @property
    def is_for_this_python(self) -> bool:
        """Whether it is installed here."""
        return self.marker is None or Marker(self.marker).evaluate()


@dataclass(frozen=True, slots=True)
class Dependency:
    """One installed package that the product runs on."""

    name: str
    version: str
    #: An SPDX expression where it gives one, else the name that it gives its licence.
    license: str
    is_spdx: bool
    #: What it needs itself, by name.
    needs: tuple[str, ...]
    #: The extra that brings it; None: always there.
    extra: str | None


def read_constraints(path: Path = CONSTRAINTS) -> list[Locked]:
    """Return the locked packages.

    Raises:
        ValueError: A line that pins no version.
    """
    found = []
    for line in path.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ValueError(f"{path} pins no version in {line!r}")
            found.append(Locked(canonicalize_name(match["name"]), match["version"], match["marker"]))
    return found


def runtime_dependencies() -> list[Dependency]:
    """Return what an installed product runs on with all its extras, by name, as this environment has it."""
    brought_by: dict[str, str | None] = dict.fromkeys(_closure(""))
    for extra in EXTRAS:
        for name in _closure(extra):
            brought_by.setdefault(name, extra)
    return [_describe(name, extra) for name, extra in sorted(brought_by.items())]


def direct_dependencies() -> set[str]:
    """Return the names of what the product itself asks for, with all its extras."""
    return {canonicalize_name(one.name) for one in _requirements(PRODUCT, EXTRAS)}


def _closure(extra: str) -> set[str]:
    found: set[str] = set()
    waiting = list(_requirements(PRODUCT, (extra,)))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # A package may come again with an extra that it was not asked for before.
        if name not in found or requirement.extras:
            found.add(name)
            waiting += [
                one
                for one in _requirements(name, tuple(requirement.extras))
                if canonicalize_name(one.name) not in found
            ]
    return found


def _requirements(name: str, extras: Sequence[str]) -> Iterator[Requirement]:
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield requirement


def _describe(name: str, extra: str | None) -> Dependency:
    metadata = importlib.metadata.metadata(name)
    expression = _first(metadata, "License-Expression")
    needs = sorted({canonicalize_name(one.name) for one in _requirements(name, ())})
    return Dependency(
        name,
        metadata["Version"],
        expression or _named_license(metadata),
        expression is not None,
        tuple(needs),
        extra,
    )


def _named_license(metadata: importlib.metadata.PackageMetadata) -> str:
    text = _first(metadata, "License") or ""
    # Some put the whole text there.
    if text and "\n" not in text and len(text) <= 60:
        return text
    classifiers = [one for one in metadata.get_all("Classifier") or [] if one.startswith("License :: ")]
    return ", ".join(one.rpartition(" :: ")[2] for one in classifiers) or "not stated"


def _first(metadata: importlib.metadata.PackageMetadata, field: str) -> str | None:
    values = metadata.get_all(field) or ()
    return next((value.strip() for value in values if value.strip()), None)
