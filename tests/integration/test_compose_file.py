"""compose.yaml, as Docker Compose itself reads it: what it asks for, and what each service may do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.deployment import REQUIRED, build_context, compose, resolved

OURS = ("server", "runner", "socket-proxy", "images")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = resolved("--profile", "*")["services"]
    return found


def test_it_is_valid_and_has_the_services_that_stay(services: dict[str, Any]) -> None:
    assert set(resolved()["services"]) == {"server", "runner", "socket-proxy", "mongo"}
    assert set(services) == {*OURS, "mongo"}


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_what_is_missing_is_named_and_nothing_has_a_default_password(missing: str) -> None:
    answer = compose("config", "--quiet", variables=REQUIRED | {missing: ""})

    assert answer.returncode != 0
    assert missing in answer.stderr


def test_what_sandboxes_are_held_in_by_is_the_same_for_those_who_ask_and_the_proxy() -> None:
    chosen = {"HARNESS_SANDBOX_RUNTIME": "runsc", "HARNESS_APPARMOR_PROFILE": "harness-agent"}
    services = resolved(**chosen)["services"]
    for name in ("server", "runner", "socket-proxy"):
        assert chosen.items() <= services[name]["environment"].items(), name


def test_public_images_can_be_pinned_by_digest() -> None:
    digest = "sha256:" + "ab" * 32
    services = resolved(HARNESS_MONGO_VERSION=f"8@{digest}", HARNESS_BASE=f"python:3.12-slim@{digest}")[
        "services"
    ]
    assert services["mongo"]["image"] == f"mongo:8@{digest}"
    assert services["runner"]["build"]["args"]["BASE"] == f"python:3.12-slim@{digest}"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_locked_down(services: dict[str, Any], name: str) -> None:
    service = services[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "user"} & service.keys()
    assert int(service["mem_limit"]) > 0
    assert service["pids_limit"] > 0


def test_the_database_has_no_capabilities_and_no_root(services: dict[str, Any]) -> None:
    mongo = services["mongo"]

    assert (mongo["user"], mongo["cap_drop"]) == ("mongodb", ["ALL"])
    assert [volume["source"] for volume in mongo["volumes"]] == ["mongo-data"]


def test_the_server_alone_can_be_reached_and_from_this_machine_alone(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}

    assert list(published) == ["server"]
    assert [(port["host_ip"], port["published"], port["target"]) for port in published["server"]] == [
        ("127.0.0.1", "8000", 8000)
    ]


def test_the_engines_socket_is_for_the_proxy_and_the_one_time_build(services: dict[str, Any]) -> None:
    with_socket = {
        name
        for name, service in services.items()
        for volume in service.get("volumes", [])
        if volume["target"] == "/var/run/docker.sock"
    }

    assert with_socket == {"socket-proxy", "images"}
    assert services["images"]["network_mode"] == "none"


def test_proxy_and_database_have_networks_without_a_way_out(services: dict[str, Any]) -> None:
    networks = resolved()["networks"]
    members = {
        network: {name for name, service in services.items() if network in (service.get("networks") or {})}
        for network in networks
    }

    assert members == {
        "front": {"server"},
        "out": {"runner"},
        "engine": {"server", "runner", "socket-proxy"},
        "database": {"server", "runner", "mongo"},
    }
    assert [name for name, network in networks.items() if not network.get("internal")] == [
        "front",
        "out",
    ]


def test_a_drain_fits_into_the_time_that_a_stop_has(services: dict[str, Any]) -> None:
    for name in ("server", "runner"):
        assert "30" in " ".join(services[name]["command"])
        assert services[name]["stop_grace_period"] == "1m30s"


def test_what_stays_is_watched_and_started_again(services: dict[str, Any]) -> None:
    for name in ("server", "runner", "socket-proxy", "mongo"):
        assert services[name]["restart"] == "unless-stopped"
    for name in ("socket-proxy", "mongo"):
        assert services[name]["healthcheck"]["test"]
    for name in ("server", "runner"):
        waits = services[name]["depends_on"]
        assert {other: wait["condition"] for other, wait in waits.items()} == {
            "mongo": "service_healthy",
            "socket-proxy": "service_healthy",
        }


def test_a_build_is_sent_the_sources_and_nothing_else() -> None:
    sent = build_context()

    assert {
        "pyproject.toml",
        "constraints.txt",
        "runner/harness/__init__.py",
        "server/harness_server/app.py",
    } <= set(sent)
    assert "sandbox-images/python/Dockerfile" in sent
    tops = {path.partition("/")[0] for path in sent}
    assert tops - {"wheelhouse"} == {
        "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "runner", "sandbox-images", "server"
    }  # fmt: skip
    assert not [path for path in sent if "__pycache__" in path or path.endswith(".env")]
