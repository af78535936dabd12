from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from harness.errors import InvalidInputError, SettingsError
from harness.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("HARNESS_", "DOCKER_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_with_nothing_set_the_defaults_hold(tmp_path: Path) -> None:
    settings = Settings.load()

    assert settings.data_dir == tmp_path / ".local" / "share" / "agent-harness"
    assert settings.mongodb_uri is None
    assert settings.mongodb_database == "agent_harness"
    assert settings.docker_host is None
    assert settings.docker_tls_verify is False
    assert settings.lease_seconds == 30
    assert settings.max_state_bytes == 65_536


def test_variables_are_read(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HARNESS_DATA_DIR", "/srv/data")
    environment.setenv("HARNESS_MONGODB_URI", "mongodb://db/")
    environment.setenv("HARNESS_MONGODB_DATABASE", "mine")
    environment.setenv("HARNESS_LEASE_SECONDS", "12.5")
    environment.setenv("HARNESS_MAX_STATE_BYTES", "1024")
    environment.setenv("HARNESS_SANDBOX_IMAGE", "registry/image:1")

    settings = Settings.load()

    assert settings.data_dir == Path("/srv/data")
    assert settings.mongodb_uri == SecretStr("mongodb://db/")
    assert settings.mongodb_database == "mine"
    assert settings.lease_seconds == 12.5
    assert settings.max_state_bytes == 1024
    assert settings.sandbox_image == "registry/image:1"


def test_an_empty_variable_is_not_set(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HARNESS_MONGODB_URI", "")
    environment.setenv("HARNESS_LEASE_SECONDS", "")

    assert Settings.load().mongodb_uri is None
    assert Settings.load().lease_seconds == 30


def test_our_docker_variables_go_before_dockers_own(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DOCKER_HOST", "tcp://theirs:2376")
    environment.setenv("DOCKER_CERT_PATH", "/theirs")
    environment.setenv("DOCKER_TLS_VERIFY", "1")
    assert Settings.load().docker_host == "tcp://theirs:2376"
    assert Settings.load().docker_cert_path == Path("/theirs")
    assert Settings.load().docker_tls_verify is True

    environment.setenv("HARNESS_DOCKER_HOST", "unix:///ours.sock")
    environment.setenv("HARNESS_DOCKER_CERT_PATH", "/ours")
    environment.setenv("HARNESS_DOCKER_TLS_VERIFY", "0")
    assert Settings.load().docker_host == "unix:///ours.sock"
    assert Settings.load().docker_cert_path == Path("/ours")
    assert Settings.load().docker_tls_verify is False

    environment.setenv("HARNESS_DOCKER_HOST", "")
    assert Settings.load().docker_host == "tcp://theirs:2376"


def test_the_data_directory_follows_xdg_unless_that_is_relative(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("XDG_DATA_HOME", "/var/xdg")
    assert Settings.load().data_dir == Path("/var/xdg/agent-harness")

    # XDG Base Directory Specification: "If an implementation encounters a relative path … ignore it."
    environment.setenv("XDG_DATA_HOME", "relative")
    assert Settings.load().data_dir == tmp_path / ".local" / "share" / "agent-harness"


def test_without_a_home_the_remedy_is_told(environment: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    environment.setattr(Path, "home", no_home)
    with pytest.raises(SettingsError, match="set HARNESS_DATA_DIR"):
        Settings.load()

    environment.setenv("HARNESS_DATA_DIR", "/srv/data")
    assert Settings.load().data_dir == Path("/srv/data")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HARNESS_LEASE_SECONDS", "soon"),
        ("HARNESS_LEASE_SECONDS", "0"),
        ("HARNESS_LEASE_SECONDS", "nan"),
        ("HARNESS_LEASE_SECONDS", "inf"),
        ("HARNESS_CPUS", "-1"),
        ("HARNESS_MAX_PROCESSES", "1.5"),
        ("HARNESS_MAX_STATE_BYTES", "64k"),
        ("HARNESS_MONGODB_DATABASE", "a/b"),
        ("HARNESS_RETENTION_TASK_DAYS", "-1"),
        ("HARNESS_RETENTION_LOG_DAYS", "1e9"),
        ("HARNESS_RETENTION_ARTIFACT_DAYS", "nan"),
        ("HARNESS_RETENTION_MAX_TASKS", "0.5"),
        ("HARNESS_RETENTION_MAX_ARTIFACTS", "all"),
        ("HARNESS_SANDBOX_RUNTIME", "/usr/bin/runsc"),
        ("HARNESS_SANDBOX_RUNTIME", "runsc --debug"),
        ("HARNESS_APPARMOR_PROFILE", "unconfined"),
        ("HARNESS_APPARMOR_PROFILE", "a profile"),
        ("HARNESS_DOCKER_TLS_VERIFY", "perhaps"),
        ("DOCKER_TLS_VERIFY", "perhaps"),
    ],
)
def test_a_malformed_variable_is_named_with_its_value(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    environment.setenv(variable, value)

    with pytest.raises(SettingsError) as caught:
        Settings.load()

    assert caught.value.message.startswith(f"settings are not valid: {variable}: ")
    assert f"'{value}'" in caught.value.message


def test_all_malformed_variables_are_named_and_no_secret_is(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HARNESS_MONGODB_URI", "mongodb://user:5551234@db/")
    environment.setenv("HARNESS_SECRETS_KEY", "5551234")
    environment.setenv("HARNESS_LEASE_SECONDS", "soon")
    environment.setenv("HARNESS_CPUS", "many")

    with pytest.raises(SettingsError) as caught:
        Settings.load()

    text = "".join(traceback.format_exception(caught.value))
    assert "HARNESS_LEASE_SECONDS" in text
    assert "HARNESS_CPUS" in text
    assert (
        "HARNESS_SECRETS_KEY: key 1 is not 32 bytes in base64; make one with: harness secrets keygen" in text
    )
    assert "5551234" not in text


def test_printed_settings_hold_no_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HARNESS_MONGODB_URI", "mongodb://user:5551234@db/")
    environment.setenv("HARNESS_SECRETS_KEY", "5551234" * 6 + "0=")

    settings = Settings.load()

    assert "5551234" not in f"{settings} {settings!r} {settings.model_dump()}"


def test_a_program_can_give_settings_by_field_name() -> None:
    assert Settings(docker_host="unix:///x.sock", lease_seconds=5).docker_host == "unix:///x.sock"


def test_the_environment_is_read_once(environment: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    first = get_settings()
    environment.setenv("HARNESS_LEASE_SECONDS", "7")

    assert get_settings() is first
    get_settings.cache_clear()
    assert get_settings().lease_seconds == 7
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("localhost", "127.0.0.1")],
)
def test_the_server_listens_on_this_machine(environment: pytest.MonkeyPatch, host: str, address: str) -> None:
    environment.setenv("HARNESS_HOST", host)
    environment.setenv("HARNESS_PORT", "8080")

    assert (Settings.load().host, Settings.load().port) == (address, 8080)
    assert Settings(host="127.0.0.1").listening_at(host, 0).host == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_an_address_that_others_could_reach_is_known_as_such(
    environment: pytest.MonkeyPatch, host: str
) -> None:
    assert Settings.load().is_loopback
    assert not Settings.load().listening_at(host, None).is_loopback
    environment.setenv("HARNESS_HOST", host)
    assert not Settings.load().is_loopback


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1:80", "", "256.1.1.1"])
def test_what_is_no_address_is_refused(environment: pytest.MonkeyPatch, host: str) -> None:
    with pytest.raises(InvalidInputError, match=f"--host {host} is refused: give localhost or an IP address"):
        Settings.load().listening_at(host, None)
    environment.setenv("HARNESS_HOST", host or "-")
    with pytest.raises(SettingsError, match=r"HARNESS_HOST: give localhost or an IP address"):
        Settings.load()


@pytest.mark.parametrize("names", ["", "a.example.org", "a, B.example.org ,[::1],10.0.0.1"])
def test_names_behind_a_proxy_are_taken(environment: pytest.MonkeyPatch, names: str) -> None:
    environment.setenv("HARNESS_ALLOWED_HOSTS", names)

    assert Settings.load().allowed_hosts == names


@pytest.mark.parametrize("names", ["https://a.example.org", "a:8000", "a/b", "*", "a b", "[::1]:8000"])
def test_what_is_no_host_name_is_refused(environment: pytest.MonkeyPatch, names: str) -> None:
    environment.setenv("HARNESS_ALLOWED_HOSTS", names)

    with pytest.raises(SettingsError, match="HARNESS_ALLOWED_HOSTS: give host names, without"):
        Settings.load()


def test_an_address_that_is_not_given_stays(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HARNESS_PORT", "8080")

    settings = Settings.load().listening_at(None, None)

    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


def test_networks_for_egress_are_checked_when_they_are_read(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HARNESS_EGRESS_PRIVATE", "10.0.0.0/8, fd00::/8")
    assert Settings.load().egress_private == "10.0.0.0/8, fd00::/8"

    environment.setenv("HARNESS_EGRESS_PRIVATE", "10.0.0.1/8")
    with pytest.raises(SettingsError, match=r"HARNESS_EGRESS_PRIVATE: give networks like 10\.0\.0\.0/8"):
        Settings.load()
