"""The scripts that look after dependencies: audit, bill of materials, licences."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import audit
import licenses
import locked
import sbom
from locked import Dependency, Locked

TODAY = date(2026, 11, 23)
HOLE = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2026-1"],
    "fixed_in": ["1.2.4"],
    "summary": "A hole.",
    "withdrawn": None,
}


class Service:
    """PyPI's JSON API, as far as the audit goes: packages by ``name/version``; any other is unknown to it."""

    def __init__(self) -> None:
        self.known: dict[str, list[dict[str, Any]]] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = service.known.get(self.path.removeprefix("/pypi/").removesuffix("/json"))
                body = json.dumps({"info": {}, "vulnerabilities": found}).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/pypi"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,))
    thread.start()
    yield service
    service.server.shutdown()
    thread.join()
    service.server.server_close()


PACKAGES = [Locked("first", "1.2.3"), Locked("second", "2.0"), Locked("third", "0.7.0b3")]


def run(service: Service, *ignored: audit.Ignored) -> int:
    return audit.audit(PACKAGES, ignored, service.url, TODAY)


def know(service: Service, **holes: list[dict[str, Any]]) -> None:
    service.known = {f"{one.name}/{one.version}": holes.get(one.name, []) for one in PACKAGES}


def test_packages_without_a_known_vulnerability_pass(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    know(service)
    assert run(service) == 0
    assert capsys.readouterr().out == "audit: 3 of 3 locked packages looked up, 0 vulnerabilities\n"


def test_a_vulnerability_fails_and_is_named_with_its_fix(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    know(service, second=[HOLE])
    assert run(service) == 1
    assert "second 2.0: GHSA-aaaa-bbbb-cccc, CVE-2026-1 (fixed in 1.2.4). A hole." in capsys.readouterr().out


def test_a_withdrawn_one_is_none(service: Service) -> None:
    know(service, second=[HOLE | {"withdrawn": "2026-01-01T00:00:00Z"}])
    assert run(service) == 0


@pytest.mark.parametrize("identifier", ["GHSA-aaaa-bbbb-cccc", "CVE-2026-1"])
def test_one_that_is_ignored_passes_until_its_day(
    service: Service, capsys: pytest.CaptureFixture[str], identifier: str
) -> None:
    know(service, first=[HOLE])
    assert run(service, audit.Ignored(identifier, "not used", TODAY)) == 0
    assert f"{identifier} of first is ignored until 2026-11-23: not used" in capsys.readouterr().out
    assert run(service, audit.Ignored(identifier, "not used", date(2026, 11, 22))) == 1
    assert "was ignored until 2026-11-22" in capsys.readouterr().out


def test_an_entry_that_concerns_nothing_any_more_is_named(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    know(service)
    assert run(service, audit.Ignored("CVE-2020-1", "not used", TODAY)) == 0
    assert "CVE-2020-1 is ignored, and concerns nothing any more" in capsys.readouterr().out


def test_where_the_service_has_no_answer_nothing_is_claimed(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(service) == audit.EXIT_NOT_AUDITED
    said = capsys.readouterr().out
    assert said.startswith("audit: NOT AUDITED. ")
    assert "0 vulnerabilities" not in said


def test_an_answer_without_a_list_of_vulnerabilities_is_none(service: Service) -> None:
    know(service)
    service.known["first/1.2.3"] = 7  # type: ignore[assignment] # as from something that is not PyPI
    assert run(service) == audit.EXIT_NOT_AUDITED


def test_where_nobody_answers_nothing_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.audit(PACKAGES, [], "http://127.0.0.1:1/pypi", TODAY) == audit.EXIT_NOT_AUDITED
    assert "NOT AUDITED" in capsys.readouterr().out


def test_a_package_that_the_service_does_not_know_is_not_audited(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    know(service)
    del service.known["third/0.7.0b3"]
    assert run(service) == audit.EXIT_NOT_AUDITED
    said = capsys.readouterr().out
    assert "NOT AUDITED: third 0.7.0b3" in said
    assert "2 of 3 locked packages looked up" in said
    know(service, first=[HOLE])
    del service.known["third/0.7.0b3"]
    assert run(service) == audit.EXIT_VULNERABLE


def test_an_entry_needs_a_reason_and_an_end(tmp_path: Path) -> None:
    file = tmp_path / "ignored.toml"
    file.write_text('[[ignored]]\nid = "CVE-2020-1"\nreason = "not used"\nuntil = 2027-01-31\n')
    assert audit.read_ignored(file) == [audit.Ignored("CVE-2020-1", "not used", date(2027, 1, 31))]
    for broken in (
        'id = "A"\nreason = "r"',
        'id = "A"\nuntil = 2027-01-31',
        'id="A"\nreason="r"\nuntil="soon"',
    ):
        file.write_text(f"[[ignored]]\n{broken}\n")
        with pytest.raises(ValueError, match="an entry must have"):
            audit.read_ignored(file)
    audit.read_ignored(audit.IGNORED)


def test_every_line_of_the_lock_is_read_and_each_pins_a_version(tmp_path: Path) -> None:
    lines = [
        line for line in locked.CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")
    ]
    assert len(locked.read_constraints()) == len(lines) > 50
    loose = tmp_path / "constraints.txt"
    loose.write_text("aiohttp==3.14.5\nrequests>=2\n")
    with pytest.raises(ValueError, match="pins no version in 'requests>=2'"):
        locked.read_constraints(loose)


def test_what_the_product_runs_on_is_locked_and_holds_no_tool_of_the_tests() -> None:
    dependencies = {one.name: one.version for one in locked.runtime_dependencies()}
    assert {"aiohttp", "pydantic", "pymongo", "docker", "yarl", "opentelemetry-sdk"} <= dependencies.keys()
    assert not {"pytest", "ruff", "secantusdb", "mypy", "mongomock-motor"} & dependencies.keys()
    assert dependencies.items() <= {(one.name, one.version) for one in locked.read_constraints()}


def test_the_bill_of_materials_hangs_together() -> None:
    made_at = datetime(2026, 11, 23, tzinfo=UTC)
    bill = sbom.bill_of_materials(locked.runtime_dependencies(), made_at)
    assert bill == sbom.bill_of_materials(locked.runtime_dependencies(), made_at)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    graph = {node["ref"]: node["dependsOn"] for node in bill["dependencies"]}
    root = bill["metadata"]["component"]["bom-ref"]
    assert graph.keys() == {root, *(component["bom-ref"] for component in bill["components"])}
    reached, waiting = set(), [root]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += graph[ref]
    assert reached == graph.keys()
    assert all(component["licenses"] for component in bill["components"])


def test_the_list_of_licences_is_current() -> None:
    pins = {(one.name, one.version) for one in locked.read_constraints()}
    assert licenses.problems(licenses.FILE.read_text(), locked.runtime_dependencies(), pins) == []


ONE = Dependency("one", "1.0", "MIT", True, (), None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "1.1"}, "must have: | one | 1.1 | MIT |  |"),
        ({"license": "BSD-3-Clause"}, "must have: | one | 1.0 | BSD-3-Clause |  |"),
        ({"name": "two"}, "must have: | two | 1.0 | MIT |  |"),
        ({"license": "AGPL-3.0-only"}, "must not be copyleft"),
        ({"license": "GNU General Public License v2 (GPLv2)"}, "must not be copyleft"),
    ],
)
def test_a_list_that_is_not_current_and_a_licence_that_may_not_be_are_named(
    change: dict[str, Any], problem: str
) -> None:
    text = licenses.HEAD + "\n".join(licenses.rows([ONE]).values()) + "\n"
    pins = {("one", "1.0"), ("one", "1.1"), ("two", "1.0")}
    assert licenses.problems(text, [ONE], pins) == []
    assert any(problem in said for said in licenses.problems(text, [replace(ONE, **change)], pins))
    assert licenses.problems(text, [], set()) == ["licenses.md has one, which is not locked at that version"]
