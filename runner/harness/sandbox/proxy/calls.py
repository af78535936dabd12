"""The calls that the product makes of an engine, one line each. What is not here is not let through. Pure.

A path must match a whole pattern, undecoded, so there is nothing to trick: no ``//``, no ``..``, no ``%2e``. A query has
the parameters that the product sends, with its values, each once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from harness.sandbox.hostconfig import ENGINES_OWN, LABEL_STORE, Isolation
from harness.sandbox.images import BASE_REPOSITORY, REPOSITORY
from harness.sandbox.proxy.creation import (
    ATTEMPT_NAME,
    CONTAINER_NAME,
    IMAGE,
    STORE_ID,
    check_creation,
    check_update,
    joined_container,
)
from harness.sandbox.proxy.request import RefusedError, Request, parse_json

#: Before it, starting a container took a body of its own. Also the first with one-shot statistics.
MIN_API_MINOR = 41

_VERSION = r"/v(?P<version>1\.[0-9]{2})"
_CONTAINER = rf"{_VERSION}/containers/(?P<container>[0-9a-f]{{64}}|{CONTAINER_NAME})"
_FLAG = "0|1|True|False|true|false"


def _check_container_filters(text: str) -> str:
    return _check_filters(text, "label", rf"{re.escape(LABEL_STORE)}={STORE_ID}")


def _check_image_filters(text: str) -> str:
    return _check_filters(text, "reference", f"{re.escape(REPOSITORY)}|{re.escape(BASE_REPOSITORY)}")


def _check_filters(text: str, key: str, pattern: str) -> str:
    filters = parse_json(text, "the parameter filters")
    match filters:
        case {**items} if list(items) == [key]:
            match items[key]:
                case [str(value)] if re.fullmatch(pattern, value):
                    return json.dumps({key: [value]})
    raise RefusedError(f"filters = {text[:120]!r} is not let through; it must be one {key} of ours")


def _check_update(body: Any, _name: str, _api_version: str, _isolation: Isolation) -> dict[str, Any]:
    return check_update(body)


#: A regular expression for the whole value, or what checks and rewrites it.
_Check = str | Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Rule:
    method: str
    path: str
    #: All of these must be there, and nothing else.
    query: Mapping[str, _Check] = field(default_factory=dict)
    #: None: no body.
    check_body: Callable[[Any, str, str, Isolation], dict[str, Any]] | None = None
    is_upgrade: bool = False


_RULES = (
    _Rule("GET", "/_ping"),
    _Rule("GET", "/version"),
    _Rule("GET", f"{_VERSION}/version"),
    _Rule("GET", f"{_VERSION}/info"),
    _Rule("GET", rf"{_VERSION}/images/(?P<image>{IMAGE.replace('@', '%40')})/json"),
    _Rule(
        "GET",
        f"{_VERSION}/images/json",
        {"only_ids": "0", "all": "0", "filters": _check_image_filters},
    ),
    _Rule(
        "GET",
        f"{_VERSION}/containers/json",
        {"limit": "-1", "all": "1", "size": "0", "trunc_cmd": "0", "filters": _check_container_filters},
    ),
    _Rule("POST", f"{_VERSION}/containers/create", {"name": CONTAINER_NAME}, check_creation),
    _Rule(
        "POST",
        f"{_CONTAINER}/attach",
        {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"},
        is_upgrade=True,
    ),
    _Rule("POST", f"{_CONTAINER}/start"),
    _Rule("POST", f"{_CONTAINER}/rename", {"name": ATTEMPT_NAME}),
    _Rule("POST", f"{_CONTAINER}/update", check_body=_check_update),
    _Rule("POST", f"{_CONTAINER}/wait", {"condition": "not-running"}),
    _Rule("GET", f"{_CONTAINER}/json"),
    _Rule("GET", f"{_CONTAINER}/stats", {"stream": _FLAG, "one-shot": _FLAG}),
    _Rule("POST", f"{_CONTAINER}/kill", {"signal": "SIGTERM|SIGKILL"}),
    _Rule("DELETE", _CONTAINER, {"v": "True", "link": "False", "force": "True"}),
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that passed: everything needed to make it anew."""

    method: str
    #: The path; ``{container}`` stands in it for the container's id where there is one.
    path: str
    query: str
    #: The name or id that was given; whose it is has to be asked before the call is made.
    container: str | None = None
    body: bytes = b""
    is_upgrade: bool = False
    #: A container that the new one is to share its network with; whose it is has to be asked as well.
    joined: str | None = None

    def target(self, container_id: str = "") -> str:
        """Return the request target, for the container of that full id."""
        path = self.path.replace("{container}", container_id)
        return f"{path}?{self.query}" if self.query else path


def check_call(request: Request, isolation: Isolation = ENGINES_OWN) -> Call:
    """Return the call that a request makes.

    Args:
        request: What was asked for.
        isolation: What every container that is created must have.

    Raises:
        RefusedError: The product makes no such call; the message has what is at fault.
    """
    for rule in _RULES:
        match = re.fullmatch(rule.path, request.path) if rule.method == request.method else None
        if match is not None:
            return _checked(request, rule, match, isolation)
    raise RefusedError(f"{request.method} {request.path[:120]} is not let through")


def _checked(request: Request, rule: _Rule, match: re.Match[str], isolation: Isolation) -> Call:
    groups = match.groupdict()
    version = groups.get("version", f"1.{MIN_API_MINOR}")
    if int(version.removeprefix("1.")) < MIN_API_MINOR:
        raise RefusedError(f"the API version {version} is not let through; 1.{MIN_API_MINOR} is the first")
    if request.is_upgrade != rule.is_upgrade:
        wanted = "must ask for" if rule.is_upgrade else "must not ask for"
        raise RefusedError(f"{request.method} {request.path[:120]} {wanted} an upgrade")
    query = _checked_query(request, rule)
    body, joined = b"", None
    if rule.check_body is not None:
        sent = parse_json(request.body, "the body")
        joined = joined_container(sent) if rule.check_body is check_creation else None
        body = json.dumps(rule.check_body(sent, query.get("name", ""), version, isolation)).encode()
    elif request.body:
        raise RefusedError(f"{request.method} {request.path[:120]} with a body is not let through")
    path, container = request.path, groups.get("container")
    if container is not None:
        start, end = match.span("container")
        path = f"{path[:start]}{{container}}{path[end:]}"
    return Call(request.method, path, urlencode(query), container, body, rule.is_upgrade, joined)


def _checked_query(request: Request, rule: _Rule) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            request.query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=16
        )
    except ValueError as error:
        if request.query:
            raise RefusedError(f"the query {request.query[:120]!r} is malformed", 400) from error
        pairs = []
    query = dict(pairs)
    if len(query) != len(pairs) or query.keys() != rule.query.keys():
        raise RefusedError(
            f"{request.method} {request.path[:120]} is let through with the parameters "
            f"[{', '.join(rule.query)}], each once; it has [{', '.join(name[:40] for name, _ in pairs)}]"
        )
    return {name: _checked_value(name, value, rule.query[name]) for name, value in query.items()}


def _checked_value(name: str, value: str, check: _Check) -> str:
    if not isinstance(check, str):
        return check(value)
    if not re.fullmatch(check, value):
        raise RefusedError(f"{name} = {value[:80]!r} is not let through")
    return value
