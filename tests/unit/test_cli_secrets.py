"""``harness secrets`` in this process, on a SQLite store, without an engine."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli.app import invoke
from harness.secrets.cipher import generate_key
from harness.settings import get_settings

pytestmark = pytest.mark.usefixtures("cli_environment")

VALUE = "correct horse\nbattery staple"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.use_keys(generate_key())

    def use_keys(self, *keys: str) -> None:
        self._monkeypatch.setenv("HARNESS_SECRETS_KEY", ",".join(keys))
        get_settings.cache_clear()

    def __call__(self, *arguments: str, stdin: bytes | None = b"", code: int = 0) -> str:
        """Run a command that must end with `code`, with a terminal where there is no `stdin`."""
        given = Terminal() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        self._monkeypatch.setattr(sys, "stdin", given)
        self._capsys.readouterr()
        ended = invoke(["secrets", *arguments])
        out, err = self._capsys.readouterr()
        assert ended == code, out + err
        # Whatever happens, no line of it.
        assert not any(line in out + err for line in VALUE.splitlines())
        return str(err if code else out)

    def json(self, *arguments: str, stdin: bytes = b"") -> Any:
        return json.loads(self(*arguments, "--json", stdin=stdin))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def test_a_secret_is_read_from_standard_input_listed_and_deleted(cli: Cli) -> None:
    stored = cli.json("set", "key", stdin=VALUE.encode())
    assert set(stored) == {"name", "created_at", "updated_at"}
    cli("set", "another", stdin=VALUE.encode())

    assert [item["name"] for item in cli.json("list")["items"]] == ["another", "key"]
    assert cli("list").split()[:3] == ["NAME", "CREATED", "SET"]
    assert cli("delete", "key") == "secret key deleted\n"
    assert [item["name"] for item in cli.json("list", "--limit", "1")["items"]] == ["another"]
    assert "there is no secret 'key'" in cli("delete", "key", code=3)


@pytest.mark.parametrize(
    ("given", "kept"), [("{}\n", "{}"), ("{}\r\n", "{}"), ("{}", "{}"), ("{}\n\n", "{}\n")]
)
def test_one_line_end_is_left_out(cli: Cli, monkeypatch: pytest.MonkeyPatch, given: str, kept: str) -> None:
    seen = []
    monkeypatch.setattr(
        "harness.secrets.cipher.SecretCipher.encrypt", lambda _self, _name, value: seen.append(value)
    )
    monkeypatch.setattr("harness.store.secrets.looks_encrypted", lambda _data: False)

    cli("set", "key", stdin=given.replace("{}", VALUE).encode(), code=2)

    assert seen == [kept.replace("{}", VALUE)]


def test_at_a_terminal_the_value_is_asked_for_without_an_echo(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def prompt(_text: str, **given: Any) -> str:
        asked.append(given)
        return VALUE

    monkeypatch.setattr(typer, "prompt", prompt)

    cli("set", "key", stdin=None)

    assert asked == [{"hide_input": True, "confirmation_prompt": True, "err": True}]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("a b", VALUE.encode(), "no name for a secret"),
        ("key", b"short\n", "too short"),
        ("key", b"", "too short"),
        ("key", b"\xff" * 20, "not UTF-8"),
        ("key", b"abcd" * 5000, "larger than"),
    ],
)
def test_what_is_no_secret_is_refused(cli: Cli, name: str, value: bytes, complaint: str) -> None:
    assert complaint in cli("set", name, stdin=value, code=2)

    assert cli.json("list")["total_count"] == 0


def test_without_a_key_the_remedy_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_SECRETS_KEY")
    get_settings.cache_clear()

    assert "harness secrets keygen" in cli("set", "key", stdin=VALUE.encode(), code=2)


def test_keys_rotate(cli: Cli) -> None:
    old, new = cli("keygen").strip(), cli("keygen").strip()
    assert old != new
    cli.use_keys(old)
    cli("set", "key", stdin=VALUE.encode())
    cli.use_keys(new)
    assert "add that key" in cli("rotate", code=2)

    cli.use_keys(new, old)
    assert cli("rotate") == "1 secrets encrypted anew\n"
    cli.use_keys(new)
    assert cli.json("rotate") == {"rotated": 0}


def test_a_change_is_in_the_audit_log_and_its_value_is_not(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("set", "key", stdin=VALUE.encode())
    cli("delete", "key")
    capsys.readouterr()

    assert invoke(["audit", "--json"]) == 0

    out = capsys.readouterr().out
    entries = json.loads(out)["entries"]
    assert [(entry["action"], entry["target"]) for entry in entries] == [
        ("delete_secret", "/api/secrets/key"),
        ("put_secret", "/api/secrets/key"),
    ]
    assert not any(line in out for line in VALUE.splitlines())


def test_the_store_holds_no_value(cli: Cli, tmp_path: Path) -> None:
    cli("set", "key", stdin=VALUE.encode())

    data = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert b"AHS1" in data
    assert not any(word.encode() in data for word in VALUE.split())
