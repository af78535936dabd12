from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from harness.cli.inputs import (
    apply_settings,
    read_code,
    read_config,
    read_folder,
    read_json_object,
    read_text,
)
from harness.errors import InvalidInputError
from harness.models import MAX_CODE_BYTES


def feed_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_code_keeps_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"print(1)\r\n")
    assert read_code(str(tmp_path / "a.py")) == "print(1)\r\n"


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    feed_stdin(monkeypatch, "print('å')\n".encode())
    assert read_code("-") == "print('å')\n"


@pytest.mark.parametrize("source", ["/dev/zero", "-"])
def test_input_that_never_ends_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feed_stdin(monkeypatch, b"x" * (MAX_CODE_BYTES + 1))
    with pytest.raises(InvalidInputError, match=r"larger than the limit of 4,194,304 bytes"):
        read_code(source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"code: the file '.*/no\.py' can't be read: No such file"):
        read_code(str(tmp_path / "no.py"))


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_an_impossible_file_name_is_an_input_error(name: str) -> None:
    with pytest.raises(InvalidInputError, match="can't be read"):
        read_text(name, what="code", max_bytes=10)


def test_empty_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(" \n")
    with pytest.raises(InvalidInputError, match="is empty"):
        read_code(str(tmp_path / "a.py"))


@pytest.mark.parametrize("argument", ['{"a": 1}', "-", "@FILE"])
def test_json_comes_from_the_argument_a_file_or_standard_input(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed_stdin(monkeypatch, b'{"a": 1}')
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json_object(argument.replace("FILE", str(tmp_path / "x.json")), what="context") == {"a": 1}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{", "context is not valid JSON"),
        ("[1]", "context must be a JSON object, got list"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "context is nested deeper than 64 levels"),
        ('{"a": "\udcff"}', "surrogate"),
    ],
)
def test_what_is_no_json_object_is_refused(argument: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_json_object(argument, what="context")


def test_config_is_yaml_or_json(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("limits:\n  cpus: 0.5\n")
    (tmp_path / "c.json").write_text('{\n\t"limits": {"cpus": 0.5}}')
    assert (
        read_config(str(tmp_path / "c.yaml"))
        == read_config(str(tmp_path / "c.json"))
        == {"limits": {"cpus": 0.5}}
    )


def test_an_instant_in_a_yaml_file_stays_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("schedule:\n  start_at: 2026-01-31T09:00:00Z\n  day: 2026-01-31\n")
    schedule = read_config(str(tmp_path / "c.yaml"))["schedule"]
    assert schedule == {"start_at": "2026-01-31T09:00:00Z", "day": "2026-01-31"}


def test_an_empty_config_file_is_an_empty_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert read_config(str(tmp_path / "c.yaml")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: [1", r"not valid YAML: .* \(line 1, column 11\)"),
        ("a: !!timestamp 2024-13-45", "not valid YAML: month must be in 1..12"),
        ("- a", "must be a mapping, got list"),
        ("!!python/object/apply:os.system [id]", "not valid YAML: could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_bad_yaml_file_is_named_on_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_config(str(tmp_path / "c.yaml"))
    assert "c.yaml" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("limits.cpus=0.5", {"limits": {"cpus": 0.5}}),
        ("network=open", {"network": "open"}),
        ('command=["sh", "-c", "true"]', {"command": ["sh", "-c", "true"]}),
        ("schedule.cron=0 3 * * *", {"schedule": {"cron": "0 3 * * *"}}),
        ("schedule.enabled=false", {"schedule": {"enabled": False}}),
        ("env.PORT=8080", {"env": {"PORT": "8080"}}),
        ("secrets.PIN=2026", {"secrets": {"PIN": "2026"}}),
        ("env.A.B=x=y", {"env": {"A.B": "x=y"}}),
        ("image=", {"image": ""}),
    ],
)
def test_set_writes_one_value(assignment: str, expected: dict[str, object]) -> None:
    assert apply_settings({}, [assignment]) == expected


def test_set_leaves_the_rest_and_the_original_alone() -> None:
    before: dict[str, Any] = {"limits": {"cpus": 1.0, "max_memory_mb": 64}}
    assert apply_settings(before, ["limits.cpus=2", "limits.max_memory_mb=null"]) == {"limits": {"cpus": 2}}
    assert before == {"limits": {"cpus": 1.0, "max_memory_mb": 64}}


@pytest.mark.parametrize("assignment", ["", "limits", "=1", "limits.=1", ".cpus=1", "a..b=1"])
def test_set_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(InvalidInputError, match="not of the form KEY=VALUE"):
        apply_settings({}, [assignment])


def test_set_does_not_lead_through_a_plain_value() -> None:
    with pytest.raises(InvalidInputError, match=r"--set network\.x: 'network' is no mapping"):
        apply_settings({"network": "open"}, ["network.x=1"])


def test_a_folder_gives_its_text_files_by_posix_path(tmp_path: Path) -> None:
    for path in [
        "main.py",
        "lib/util.py",
        "__pycache__/main.pyc",
        ".git/config",
        ".env",
        "lib/.hidden",
        ".venv/x.py",
    ]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    assert read_folder(str(tmp_path)) == {"main.py": "main.py", "lib/util.py": "lib/util.py"}


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InvalidInputError, match=r"logo\.png' is not UTF-8 text \(at byte 0\)"):
        read_folder(str(tmp_path))


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds no files"):
        read_folder(str(tmp_path))
    with pytest.raises(InvalidInputError, match="is no folder"):
        read_folder(str(tmp_path / "no"))


def test_files_too_large_together_are_refused(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text("x" * (MAX_CODE_BYTES // 2))
    with pytest.raises(InvalidInputError, match="is that the right folder"):
        read_folder(str(tmp_path))


def test_a_link_to_a_folder_is_refused_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)")
    (tmp_path / "lib").symlink_to("/usr/lib")
    with pytest.raises(InvalidInputError, match=r"lib' is a link to a folder"):
        read_folder(str(tmp_path))


def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queue")
    with pytest.raises(InvalidInputError, match=r"queue' is no regular file"):
        read_folder(str(tmp_path))
