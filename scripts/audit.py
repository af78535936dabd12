"""Holds constraints.txt against the vulnerabilities that PyPI knows of.

Exit codes: 0, all were looked up and none has a known vulnerability that is not ignored; 1, there is one; 3, the service
was not reached, or does not know all of them, so nothing is claimed of those.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from locked import CONSTRAINTS, ROOT, Locked, read_constraints

#: PyPI's JSON API: https://docs.pypi.org/api/json/
SERVICE = "https://pypi.org/pypi"
IGNORED = ROOT / "scripts" / "audit-ignored.toml"
EXIT_VULNERABLE, EXIT_NOT_AUDITED = 1, 3
#: Bound on one answer, and on all of them, in seconds.
ANSWER_SECONDS, ALL_SECONDS = 10.0, 60.0
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Ignored:
    """A vulnerability that does not concern us, and until when that is believed."""

    id: str
    reason: str
    until: date


@dataclass(frozen=True, slots=True)
class Found:
    """A known vulnerability of a locked package."""

    package: Locked
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]
    summary: str


class NotAuditedError(Exception):
    """The service has no answer about a package."""


def read_ignored(path: Path) -> list[Ignored]:
    """Return what is ignored.

    Raises:
        ValueError: An entry has no reason or no end.
    """
    entries = tomllib.loads(path.read_text()).get("ignored", [])
    for entry in entries:
        if (
            entry.keys() != {"id", "reason", "until"}
            or not isinstance(entry["until"], date)
            or not entry["reason"]
        ):
            raise ValueError(
                f"{path}: an entry must have an id, a reason and a day (until = 2027-01-31): {entry}"
            )
    return [Ignored(**entry) for entry in entries]


def look_up(package: Locked, service: str, *, until: float) -> list[Found]:
    """Return what is known about a package.

    Raises:
        NotAuditedError: There is no answer.
    """
    if time.monotonic() > until:
        raise NotAuditedError(f"no time left after {ALL_SECONDS:g} s")
    url = f"{service}/{package.name}/{package.version}/json"
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - our own address
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - the same
            said: Mapping[str, Any] = json.load(answer)
        known: list[Mapping[str, Any]] = list(said["vulnerabilities"])
    except urllib.error.HTTPError as error:
        error.close()
        raise NotAuditedError(f"{url}: HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise NotAuditedError(f"{url}: {error!r}") from error
    return [
        Found(
            package,
            (one["id"], *one.get("aliases", ())),
            tuple(one.get("fixed_in") or ()),
            " ".join((one.get("summary") or one.get("details") or "").split())[:160],
        )
        for one in known
        if not one.get("withdrawn")
    ]


def audit(packages: Sequence[Locked], ignored: Sequence[Ignored], service: str, today: date) -> int:
    """Look all packages up, say what there is, and return the exit code."""
    until = time.monotonic() + ALL_SECONDS
    found: list[Found] = []
    missing: dict[Locked, str] = {}

    def ask(package: Locked) -> list[Found] | NotAuditedError:
        try:
            return look_up(package, service, until=until)
        except NotAuditedError as error:
            return error

    def note(package: Locked, answer: list[Found] | NotAuditedError) -> None:
        if isinstance(answer, NotAuditedError):
            missing[package] = str(answer)
        else:
            found.extend(answer)

    # One alone first: where the service is not reached, one wait is enough.
    first, rest = packages[0], packages[1:]
    note(first, ask(first))
    if missing:
        print(f"audit: NOT AUDITED. {service} gives no answer: {missing[first]}")
        return EXIT_NOT_AUDITED
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for package, answer in zip(rest, threads.map(ask, rest), strict=True):
            note(package, answer)

    bad = [one for one in found if not _is_ignored(one, ignored, today)]
    for one in bad:
        fix = f"fixed in {', '.join(one.fixed_in)}" if one.fixed_in else "no fix yet"
        print(f"audit: {one.package.name} {one.package.version}: {', '.join(one.ids)} ({fix}). {one.summary}")
    known = {identifier for one in found for identifier in one.ids}
    for entry in ignored:
        if entry.id not in known and not missing:
            print(
                f"audit: {entry.id} is ignored, and concerns nothing any more: take it out of {IGNORED.name}"
            )
    for package, reason in missing.items():
        print(f"audit: NOT AUDITED: {package.name} {package.version}: {reason}")
    audited = len(packages) - len(missing)
    print(f"audit: {audited} of {len(packages)} locked packages looked up, {len(bad)} vulnerabilities")
    if bad:
        print(f"audit: ./justw lock --upgrade-package NAME, or {IGNORED.name} with a reason and an end")
        return EXIT_VULNERABLE
    return EXIT_NOT_AUDITED if missing else 0


def _is_ignored(found: Found, ignored: Sequence[Ignored], today: date) -> bool:
    for entry in ignored:
        if entry.id in found.ids:
            if today <= entry.until:
                print(
                    f"audit: {entry.id} of {found.package.name} is ignored until {entry.until}: {entry.reason}"
                )
                return True
            print(f"audit: {entry.id} was ignored until {entry.until}, and is not any more")
    return False


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", default=os.environ.get("PYPI_JSON_URL", SERVICE), help="PyPI's JSON API")
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS)
    parser.add_argument("--ignored", type=Path, default=IGNORED)
    options = parser.parse_args()
    # All of them, for whatever platform: who installs there is concerned as well.
    packages = read_constraints(options.constraints)
    ignored = read_ignored(options.ignored)
    return audit(packages, ignored, options.service.rstrip("/"), datetime.now(UTC).date())


if __name__ == "__main__":
    sys.exit(main())
