"""Tokens and the audit log from the command line, on a SQLite store, with nothing else running."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness.api import LocalApi
from harness.cli.app import invoke
from harness.cli.audited import CHANGES
from harness.tokens import TokenText, hash_secret
from harness_server.routes import ENDPOINTS

pytestmark = pytest.mark.usefixtures("cli_environment")


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self.path = folder / "data" / "harness.db"

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run a command that must end with `code`; return what it printed."""
        self._capsys.readouterr()
        ended = invoke(list(arguments))
        out, err = self._capsys.readouterr()
        assert ended == code, out + err
        return out, err

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json")[0])


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    return Cli(capsys, tmp_path)


def test_a_tokens_text_is_all_that_is_printed_to_standard_output(cli: Cli) -> None:
    out, err = cli("tokens", "create", "ci", "--scope", "run", "--expires-days", "90")

    token = TokenText.parse(out.rstrip("\n"))
    assert token
    assert err.splitlines()[0].startswith("token 1 (ci) with the scope run; it expires 20")
    assert err.splitlines()[1] == "keep it now, it is not shown again:"
    with closing(sqlite3.connect(cli.path)) as connection:
        stored = "\n".join(connection.iterdump())
    assert hash_secret(token.secret) in stored
    assert token.secret not in stored
    for page in (cli("tokens", "list"), cli("audit"), cli("tokens", "revoke", "1")):
        assert token.secret not in "".join(page)


def test_tokens_are_listed_with_what_became_of_them(cli: Cli) -> None:
    cli("tokens", "create", "old", "--scope", "read")
    cli("tokens", "create", "short", "--scope", "admin", "--expires-days", "0.001")
    cli("tokens", "revoke", "1")

    lines = [line.split() for line in cli("tokens", "list")[0].splitlines()]
    assert lines[0] == ["ID", "NAME", "SCOPE", "STATUS", "EXPIRES", "LAST", "USED"]
    assert lines[1][:4] == ["2", "short", "admin", "valid"]
    assert lines[2] == ["1", "old", "read", "revoked", "-", "-"]
    page = cli.json("tokens", "list", "--limit", "1")
    assert page["total_count"] == 2
    assert set(page["items"][0]) == {
        "id", "name", "scope", "created_at", "expires_at", "last_used_at", "revoked_at",
    }  # fmt: skip


def test_a_new_token_is_one_json_document_with_its_text(cli: Cli) -> None:
    made = cli.json("tokens", "create", "ci", "--scope", "read")

    assert made["token"]["expires_at"] is None
    assert TokenText.parse(made["text"])


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["create", "ci"], 2, "Missing option '--scope'"),
        (["create", "ci", "--scope", "root"], 2, "'root' is not one of"),
        (["create", "17", "--scope", "read"], 2, "would be taken for an id"),
        (["create", "a\x1b", "--scope", "read"], 2, "NAME is not valid"),
        (["create", "ci", "--scope", "read", "--expires-days", "0"], 2, "--expires-days"),
        (["revoke", "9"], 3, "there is no token 9"),
        (["revoke", "ci"], 2, "Invalid value for 'TOKEN'"),
    ],
)
def test_what_is_wrong_is_said(cli: Cli, arguments: list[str], code: int, complaint: str) -> None:
    assert complaint in cli("tokens", *arguments, code=code)[1]
    assert cli.json("tokens", "list")["total_count"] == 0
    assert cli.json("audit") == {"entries": []}


def test_changes_of_tokens_are_in_the_audit_log_with_who_made_them(cli: Cli) -> None:
    cli("tokens", "create", "ci", "--scope", "run")
    cli("tokens", "revoke", "1")

    entries = cli.json("audit")["entries"]

    user = pwd.getpwuid(os.getuid()).pw_name
    assert [(entry["action"], entry["target"], entry["actor"], entry["peer"]) for entry in entries] == [
        ("revoke_token", "/api/tokens/1", "cli", user),
        ("create_token", "/api/tokens", "cli", user),
    ]
    assert [entry["id"] for entry in cli.json("audit", "--before", "2")["entries"]] == [1]
    out, err = cli("audit", "--before", "1")
    assert len(out.splitlines()) == 1
    assert err == "none found\n"


def test_other_changes_are_there_too(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print(1)")
    cli("agents", "create", "a", "--code", str(tmp_path / "a.py"))
    cli("handoff", "set", "a", "{}")
    cli("agents", "show", "a")
    cli("agents", "delete", "nobody", "--yes", code=3)
    cli("agents", "delete", "a", "--yes")

    entries = cli.json("audit")["entries"]

    assert [(entry["action"], entry["target"], entry["made"]) for entry in entries] == [
        ("delete_agent", "/api/agents/1", None),
        ("put_handoff", "/api/agents/1/handoff", None),
        ("create_agent", "/api/agents", "/api/agents/1"),
    ]


def test_changes_are_called_as_the_api_calls_them() -> None:
    changing = {
        endpoint.name for endpoints in ENDPOINTS.values() for endpoint in endpoints if endpoint.is_change
    }

    assert {action for action, _, _ in CHANGES.values()} == changing
    assert all(hasattr(LocalApi, name) for name in CHANGES)
