"""What a container may be created with: what the product itself would send, to the last key. Pure.

The few values that differ from run to run are read out of a body; from them the product's own code makes the body that
it would have sent; and the two must be the same. So nobody has to list what is dangerous, in whatever spelling (the
engine's decoder does not tell ``Binds`` from ``BINDS``), and a key of a future engine is refused as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from harness.ports import SandboxLabels, SandboxLimits, SandboxSpec
from harness.sandbox.hostconfig import (
    LABEL_FENCE,
    LABEL_STORE,
    LABEL_TASK,
    container_name,
    creation_body,
)
from harness.sandbox.proxy.request import RefusedError

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
#: A name, with a tag, a digest or both, as in distribution's reference grammar; or an image's id.
IMAGE = rf"{_REGISTRY}{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
STORE_ID = r"[A-Za-z0-9_-]{1,64}"
#: Names by `container_name`.
CONTAINER_NAME = r"harness-[A-Za-z0-9_-]{1,12}-[0-9]{1,18}-[0-9]{1,18}"

_TMPFS_SIZE = re.compile(r"size=([1-9][0-9]{0,17})\b")
#: What the engine itself demands at least.
_MIN_MEMORY_BYTES = 4 * 1024 * 1024
_MAX_NUMBER = 2**53
_NETWORKS: dict[str, Literal["none", "open"]] = {"none": "none", "bridge": "open"}


def check_creation(body: Any, name: str, api_version: str) -> dict[str, Any]:
    """Return the body to send to the engine, which says the same as the one that was sent.

    Args:
        body: Decoded JSON of ``POST /containers/create``.
        name: The container's name, of the same request.
        api_version: For example ``1.41``.

    Raises:
        RefusedError: It is not what the product would send; the message has the first difference.
    """
    spec, image = _spec(body), _text(body, "Image", IMAGE, "Image")
    expected = creation_body(image, spec, api_version)
    for key, check in (("Env", _check_env), ("Entrypoint", _check_words)):
        expected.pop(key, None)
        if key in body:
            expected[key] = check(body[key])
    difference = next(_differences(expected, body, ""), None)
    if difference is not None:
        raise RefusedError(f"a container with {difference} is not let through")
    if name != container_name(spec.labels):
        raise RefusedError(f"the container's name {name[:80]!r} does not fit its labels")
    return expected


def owner_labels(labels: Any) -> SandboxLabels | None:
    """Return the product's labels among those of a container; None: it is somebody else's."""
    if not isinstance(labels, Mapping):
        return None
    store, task, fence = (labels.get(name) for name in (LABEL_STORE, LABEL_TASK, LABEL_FENCE))
    if not (isinstance(store, str) and isinstance(task, str) and isinstance(fence, str)):
        return None
    if not re.fullmatch(STORE_ID, store) or not all(
        re.fullmatch("[0-9]{1,18}", part) for part in (task, fence)
    ):
        return None
    return SandboxLabels(store, int(task), int(fence))


def _spec(body: Any) -> SandboxSpec:
    if not isinstance(body, dict):
        raise RefusedError("the body of a creation must be a JSON object")
    host = body.get("HostConfig")
    if not isinstance(host, dict):
        raise RefusedError("a container without a HostConfig is not let through")
    labels = owner_labels(body.get("Labels"))
    if labels is None:
        raise RefusedError(
            f"a container without the labels {LABEL_STORE}, -.task and -.fence is not let through"
        )
    network = host.get("NetworkMode")
    if not isinstance(network, str) or network not in _NETWORKS:
        raise RefusedError(f"a container with HostConfig.NetworkMode = {_shown(network)} is not let through")
    return SandboxSpec(limits=_limits(host), labels=labels, network=_NETWORKS[network])


def _limits(host: dict[str, Any]) -> SandboxLimits:
    tmpfs = host.get("Tmpfs")
    options = tmpfs.get("/tmp") if isinstance(tmpfs, dict) else None  # noqa: S108 - a path in a container
    size = _TMPFS_SIZE.search(options) if isinstance(options, str) else None
    if size is None:
        raise RefusedError("a container without a size for the tmpfs at /tmp is not let through")
    return SandboxLimits(
        memory_bytes=_number(host, "Memory", _MIN_MEMORY_BYTES),
        cpus=_number(host, "NanoCpus", 1) / 1_000_000_000,
        max_processes=_number(host, "PidsLimit", 1),
        tmp_bytes=int(size[1]),
        # Not the engine's business.
        timeout_seconds=0,
        grace_seconds=0,
        output_bytes=0,
        state_bytes=0,
    )


def _number(host: dict[str, Any], key: str, least: int) -> int:
    value = host.get(key)
    # A limit of 0 or -1 is none, to the engine.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_NUMBER:
        raise RefusedError(
            f"a container with HostConfig.{key} = {_shown(value)} is not let through; it must be {least} at least"
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
