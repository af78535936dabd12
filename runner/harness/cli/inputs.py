"""What commands take from files, standard input and arguments, checked and with its origin named in every error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import InvalidInputError

#: Bound on one JSON argument or file, in bytes; what it is used for sets a lower one.
MAX_JSON_BYTES = 16 * 1024 * 1024
#: Bound on a config file, in bytes.
MAX_CONFIG_BYTES = 1024 * 1024

_SKIPPED_FOLDERS = frozenset({"__pycache__"})


def read_text(source: str, *, what: str, max_bytes: int) -> str:
    """Read a UTF-8 file, or standard input for ``-``; line ends stay as they are.

    Args:
        source: Path, or ``-``.
        what: How messages call it, for example ``"code"``.
        max_bytes: Reading stops there, so that a device that never ends is an error too.

    Raises:
        InvalidInputError: It can't be read, is too large or is no UTF-8.
    """
    where = "standard input" if source == "-" else f"the file {source!r}"
    try:
        if source == "-":
            data = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"{what}: {where} can't be read: {reason}") from error
    if len(data) > max_bytes:
        raise InvalidInputError(f"{what}: {where} is larger than the limit of {max_bytes:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{what}: {where} is not UTF-8 text (at byte {error.start})") from error


def read_json_object(argument: str, *, what: str) -> dict[str, Any]:
    """Read a JSON object given as it is, as ``@FILE``, or as ``-`` for standard input.

    Raises:
        InvalidInputError: It is no JSON object, or can't be read.
    """
    from harness.jsontext import decode_document

    if argument == "-":
        return decode_document(read_text("-", what=what, max_bytes=MAX_JSON_BYTES), what=what)
    if argument.startswith("@"):
        text = read_text(argument[1:], what=what, max_bytes=MAX_JSON_BYTES)
        return decode_document(text, what=f"{what} in {argument[1:]!r}")
    return decode_document(argument, what=what, max_bytes=MAX_JSON_BYTES)


def read_config(source: str) -> dict[str, Any]:
    """Read an agent's config from a JSON file (by its name's ending) or else a YAML file; ``-`` is YAML.

    Raises:
        InvalidInputError: It can't be read, or is no mapping.
    """
    text = read_text(source, what="config", max_bytes=MAX_CONFIG_BYTES)
    where = "standard input" if source == "-" else repr(source)
    if source.endswith(".json"):
        from harness.jsontext import decode_document

        return decode_document(text, what=f"the config in {where}")
    value = _parse_yaml(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(f"the config in {where} must be a mapping, got {type(value).__name__}")
    return value


def _parse_yaml(text: str, where: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Leaves instants as text: a config holds what JSON can hold."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise InvalidInputError(f"the config in {where} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInputError(f"the config in {where} is not valid YAML: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{getattr(error, 'problem', None)} (line {mark.line + 1}, column {mark.column + 1})"


def apply_settings(config: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a config with ``KEY=VALUE`` assignments applied.

    Keys are dotted paths (``limits.cpus``). A value is JSON where it parses as JSON, else a string; under ``env`` and
    ``secrets`` it is always a string. ``null`` removes the key.

    Raises:
        InvalidInputError: An assignment has no such form, or its path leads through something that is no mapping.
    """
    changed = dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.split(".", 1) if path.startswith(("env.", "secrets.")) else path.split(".")
        if not equals or not all(keys):
            raise InvalidInputError(
                f"--set {assignment!r} is not of the form KEY=VALUE, as in limits.cpus=0.5"
            )
        value = text if keys[0] in ("env", "secrets") and len(keys) == 2 else _json_or_text(text)
        _assign(changed, keys, value, path)
    return changed


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _assign(config: dict[str, Any], keys: list[str], value: Any, path: str) -> None:
    section = config
    for key in keys[:-1]:
        inner = section.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise InvalidInputError(f"--set {path}: {key!r} is no mapping in this config")
        # A copy: the config that was given stays as it is.
        section[key] = section = dict(inner or {})
    if value is None:
        section.pop(keys[-1], None)
    else:
        section[keys[-1]] = value


def read_code(source: str) -> str:
    """Read the source of a one-file agent from a file, or from standard input for ``-``."""
    from harness.models import MAX_CODE_BYTES

    code = read_text(source, what="code", max_bytes=MAX_CODE_BYTES)
    if not code.strip():
        where = "standard input" if source == "-" else f"the file {source!r}"
        raise InvalidInputError(f"code: {where} is empty")
    return code


def read_folder(folder: str) -> dict[str, str]:
    """Read an agent's files: every text file below `folder`, by relative POSIX path.

    ``__pycache__`` and whatever begins with a dot (``.git``, ``.venv``, ``.env``) is left out.

    Raises:
        InvalidInputError: Naming the first file that is no UTF-8 text, no regular file or can't be read; or when all
            together are too large.
    """
    from harness.models import MAX_CODE_BYTES

    root = Path(folder)
    if not root.is_dir():
        raise InvalidInputError(f"--folder {folder!r} is no folder")
    files: dict[str, str] = {}
    size = 0
    for path in _files_below(root):
        text = read_text(str(path), what="code", max_bytes=MAX_CODE_BYTES)
        size += len(text.encode())
        if size > MAX_CODE_BYTES:
            raise InvalidInputError(
                f"the files in {folder!r} are larger than {MAX_CODE_BYTES:,} bytes together; is that the right folder?"
            )
        files[path.relative_to(root).as_posix()] = text
    if not files:
        raise InvalidInputError(f"--folder {folder!r} holds no files")
    return files


def _files_below(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InvalidInputError(f"the folder {error.filename!r} can't be read: {error.strerror}") from error

    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(
            name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith(".")
        )
        here = Path(folder)
        # os.walk does not enter these, and an agent that lacks files without a word is worse than an error.
        linked = next((name for name in folders if (here / name).is_symlink()), None)
        if linked is not None:
            raise InvalidInputError(f"{str(here / linked)!r} is a link to a folder; copy the folder instead")
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = here / name
            if not path.is_file():
                raise InvalidInputError(f"{str(path)!r} is no regular file")
            yield path
