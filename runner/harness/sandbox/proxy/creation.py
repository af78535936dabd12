"""What a container may be created with: what the product itself would send, to the last key. Pure.

The few values that differ from run to run are read out of a body; from them the product's own code makes the body that
it would have sent; and the two must be the same. So nobody has to list what is dangerous, in whatever spelling (the
engine's decoder does not tell ``Binds`` from ``BINDS``), and a key of a future engine is refused as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from harness.ports import SandboxLabels, SandboxShape, WarmLabels
from harness.sandbox.hostconfig import (
    ENGINES_OWN,
    LABEL_STORE,
    Isolation,
    container_name,
    creation_body,
    read_labels,
    relay_body,
    relay_name,
    update_body,
    warm_name,
)
from harness.sandbox.proxy.request import RefusedError

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
#: A name, with a tag, a digest or both, as in distribution's reference grammar; or an image's id.
IMAGE = rf"{_REGISTRY}{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
STORE_ID = r"[A-Za-z0-9_-]{1,64}"
_WARM_PART = "[0-9a-f]{12}"
#: Names by `container_name`, and those by `relay_name` and `warm_name` as well.
ATTEMPT_NAME = r"harness-[A-Za-z0-9_-]{1,12}-[0-9]{1,18}-[0-9]{1,18}"
CONTAINER_NAME = rf"(?:{ATTEMPT_NAME}(?:-egress)?|harness-[A-Za-z0-9_-]{{1,12}}-warm-{_WARM_PART})"
_OWNER = r"[A-Za-z0-9_.:-]{1,300}"

_TMPFS_SIZE = re.compile(r"size=([1-9][0-9]{0,17})\b")
#: What the engine itself demands at least.
_MIN_MEMORY_BYTES = 4 * 1024 * 1024
_MAX_NUMBER = 2**53
#: Of a relay, which shares a container's loopback.
_JOINED = re.compile(r"container:([0-9a-f]{64})")
_NETWORKS: dict[str, Literal["none", "open"]] = {"none": "none", "bridge": "open"}


def check_creation(
    body: Any, name: str, api_version: str, isolation: Isolation = ENGINES_OWN
) -> dict[str, Any]:
    """Return the body to send to the engine, which says the same as the one that was sent.

    Args:
        body: Decoded JSON of ``POST /containers/create``.
        name: The container's name, of the same request.
        api_version: For example ``1.41``.
        isolation: What every container must have.

    Raises:
        RefusedError: It is not what the product would send; the message has the first difference.
    """
    if joined_container(body) is not None:
        return _check_relay(body, name, api_version, isolation)
    shape, labels, image = _shape(body), _labels(body, name), _text(body, "Image", IMAGE, "Image")
    expected = creation_body(image, shape, labels, api_version, isolation=isolation)
    for key, check in (("Env", _check_env), ("Entrypoint", _check_words)):
        expected.pop(key, None)
        if key in body:
            expected[key] = check(body[key])
    return _same(expected, body)


def joined_container(body: Any) -> str | None:
    """Return the id of the container whose network a new one is to share; whose that is has to be asked. None: nobody's."""
    host = body.get("HostConfig") if isinstance(body, dict) else None
    mode = host.get("NetworkMode") if isinstance(host, dict) else None
    match = _JOINED.fullmatch(mode) if isinstance(mode, str) else None
    return None if match is None else match[1]


def _check_relay(body: dict[str, Any], name: str, api_version: str, isolation: Isolation) -> dict[str, Any]:
    labels = _read(body.get("Labels"))
    if not isinstance(labels, SandboxLabels) or name != relay_name(labels):
        raise RefusedError(
            "a container with HostConfig.NetworkMode = container:… is not let through, unless it is the relay of "
            f"an attempt; its name {name[:80]!r} and its labels are no relay's"
        )
    container_id = joined_container(body)
    assert container_id is not None
    image = _text(body, "Image", IMAGE, "Image")
    return _same(relay_body(image, labels, container_id, api_version, isolation=isolation), body)


def _same(expected: dict[str, Any], body: Any) -> dict[str, Any]:
    difference = next(_differences(expected, body, ""), None)
    if difference is not None:
        raise RefusedError(f"a container with {difference} is not let through")
    return expected


def check_update(body: Any) -> dict[str, Any]:
    """Return the body to send to the engine to change a container's limits: memory, processor time and processes.

    Raises:
        RefusedError: It changes anything else, or takes a limit away.
    """
    if not isinstance(body, dict):
        raise RefusedError("the body of an update must be a JSON object")
    expected: dict[str, Any] = dict(update_body(_shape_of(body, tmp_bytes=0, network="none")))
    difference = next(_differences(expected, body, ""), None)
    if difference is not None:
        raise RefusedError(f"an update with {difference} is not let through")
    return expected


def is_ours(labels: Any) -> bool:
    """Return whether a container's labels are such as the product gives."""
    return _read(labels) is not None


def _read(given: Any) -> SandboxLabels | WarmLabels | None:
    """Return what well-formed labels say. By themselves: what a name says counts only where the engine says it."""
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        return None
    labels = read_labels(given, "")
    return labels if labels is not None and _is_well_formed(labels) else None


def _is_well_formed(labels: SandboxLabels | WarmLabels) -> bool:
    if not re.fullmatch(STORE_ID, labels.store_id):
        return False
    if isinstance(labels, WarmLabels):
        return re.fullmatch(_OWNER, labels.owner) is not None
    return 0 <= labels.task_id < _MAX_NUMBER and 0 <= labels.fence < _MAX_NUMBER


def _labels(body: Any, name: str) -> SandboxLabels | WarmLabels:
    """Return the labels in a body, which fit the container's name; that there are no others is seen later."""
    labels = _read(body.get("Labels"))
    if labels is None:
        raise RefusedError(
            f"a container without the labels {LABEL_STORE}, -.task and -.fence, or -.owner and -.until, "
            "is not let through"
        )
    if isinstance(labels, WarmLabels):
        is_named = re.fullmatch(re.escape(warm_name(labels.store_id, "")) + _WARM_PART, name) is not None
    else:
        is_named = name == container_name(labels)
    if not is_named:
        raise RefusedError(f"the container's name {name[:80]!r} does not fit its labels")
    return labels


def _shape(body: Any) -> SandboxShape:
    if not isinstance(body, dict):
        raise RefusedError("the body of a creation must be a JSON object")
    host = body.get("HostConfig")
    if not isinstance(host, dict):
        raise RefusedError("a container without a HostConfig is not let through")
    network = host.get("NetworkMode")
    if not isinstance(network, str) or network not in _NETWORKS:
        raise RefusedError(f"a container with HostConfig.NetworkMode = {_shown(network)} is not let through")
    tmpfs = host.get("Tmpfs")
    options = tmpfs.get("/tmp") if isinstance(tmpfs, dict) else None  # noqa: S108 - a path in a container
    size = _TMPFS_SIZE.search(options) if isinstance(options, str) else None
    if size is None:
        raise RefusedError("a container without a size for the tmpfs at /tmp is not let through")
    return _shape_of(host, tmp_bytes=int(size[1]), network=_NETWORKS[network])


def _shape_of(host: dict[str, Any], *, tmp_bytes: int, network: Literal["none", "open"]) -> SandboxShape:
    return SandboxShape(
        image=None,
        memory_bytes=_number(host, "Memory", _MIN_MEMORY_BYTES),
        cpus=_number(host, "NanoCpus", 1) / 1_000_000_000,
        max_processes=_number(host, "PidsLimit", 1),
        tmp_bytes=tmp_bytes,
        network=network,
    )


def _number(host: dict[str, Any], key: str, least: int) -> int:
    value = host.get(key)
    # A limit of 0 or -1 is none, to the engine.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_NUMBER:
        raise RefusedError(
            f"a container with {key} = {_shown(value)} is not let through; it must be {least} at least"
        )
    return value


def _text(body: dict[str, Any], key: str, pattern: str, where: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or len(value) > 512 or not re.fullmatch(pattern, value):
        raise RefusedError(f"a container with {where} = {_shown(value)} is not let through")
    return value


def _check_words(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise RefusedError(
            f"a container with Entrypoint = {_shown(value)} is not let through; give a list of strings"
        )
    return value


def _check_env(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(pair, str) and "=" in pair[1:] for pair in value):
        raise RefusedError("a container with an Env that is no list of NAME=value is not let through")
    return value


def _differences(expected: Any, got: Any, where: str) -> Iterator[str]:
    """Yield what differs, a phrase each. Types count: Python takes True for 1."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in got:
            inner = f"{where}.{key[:80]}" if where else key[:80]
            if key not in expected:
                yield f"{inner!r}"
            else:
                yield from _differences(expected[key], got[key], inner)
        yield from (f"no {where}.{key}" for key in expected if key not in got)
    elif json.dumps(expected, sort_keys=True) != json.dumps(got, sort_keys=True):
        yield f"{where} = {_shown(got)} (it must be {_shown(expected)})"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
