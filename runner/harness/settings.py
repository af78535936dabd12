"""The settings: one frozen object read from `HARNESS_*` (and Docker's own variables), once.

Nothing else in the product reads the environment. `get_settings` is for programs that pass no settings of their own,
as the API description's examples do; everything below the composition root takes what it needs as arguments.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from harness.config import DEFAULT_MAX_STATE_BYTES, MAX_KEPT, MIB, Days, quote_value
from harness.egress.policy import parse_networks
from harness.errors import InvalidInputError, SettingsError
from harness.secrets.cipher import parse_keys

#: A host name, an IPv4 address, or an IPv6 address in brackets, as in a URL.
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


def _default_data_dir() -> Path:
    # XDG Base Directory Specification 0.8
    base = os.environ.get("XDG_DATA_HOME") or ""
    if base.startswith("/"):
        return Path(base) / "agent-harness"
    try:
        home = Path.home()
    except RuntimeError:
        # A container's made-up user id has no entry in the password file.
        raise SettingsError("there is no home directory to keep data in; set HARNESS_DATA_DIR") from None
    return home / ".local" / "share" / "agent-harness"


def _listening_address(host: str) -> str:
    """Return the address behind ``localhost`` or an IP address.

    Raises:
        ValueError: It is something else.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(
            "give localhost or an IP address of this machine; 0.0.0.0 or :: is all of them"
        ) from None


def _host_names(text: str) -> str:
    for name in text.split(","):
        if name.strip() and not _HOST_NAME.fullmatch(name.strip()):
            raise ValueError("give host names, without a scheme, a port or a path, separated by commas")
    return text


def _network_list(text: str) -> str:
    parse_networks(text)
    return text


def _check_keys(keys: SecretStr | None) -> SecretStr | None:
    if keys is not None:
        parse_keys(keys.get_secret_value())
    return keys


def _check_profile(profile: str | None) -> str | None:
    if profile == "unconfined":
        raise ValueError("unconfined is no profile; leave it unset for the engine's own")
    return profile


class Settings(BaseSettings):
    """Every setting, with its default."""

    model_config = SettingsConfigDict(
        env_prefix="HARNESS_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    #: Holds the embedded store; made on first use, readable by its owner only.
    data_dir: Path = Field(default_factory=_default_data_dir)
    #: Connection string of a MongoDB from 7.0 on. Not set: the embedded SQLite store in `data_dir`.
    mongodb_uri: SecretStr | None = None
    mongodb_database: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")] = "agent_harness"

    #: Where `harness serve` listens; where others could reach it, only once there is a token to ask for. Port 0: any.
    host: Annotated[str, AfterValidator(_listening_address)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    #: Names that the server goes by beside those of this machine, as behind a proxy; separated by commas.
    allowed_hosts: Annotated[str, AfterValidator(_host_names)] = ""
    #: Requests of one token, or of one address where there are no tokens: so many a second, and so many at once. 0: any.
    rate_limit_per_second: Annotated[float, Field(ge=0, le=1_000_000)] = 500
    rate_limit_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    #: Connections that the server holds at a time. Each takes a file descriptor; 1024 are usual for a process.
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 800
    #: How long a request's body may take to come, and how long the server then works on it, streams and waits for a
    #: run's end aside.
    request_timeout_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    #: Lines of the audit log that are kept.
    audit_max_entries: Annotated[int, Field(ge=100, le=100_000_000)] = 100_000

    #: A server that `harness agents`, `tasks` and so on speak to. Not set: they work on the store themselves.
    url: str | None = None
    #: What they identify themselves with there.
    token: SecretStr | None = None

    #: Where the Docker Engine answers. Not set: DOCKER_HOST, the current docker context, the usual sockets.
    docker_host: str | None = Field(
        default=None, validation_alias=AliasChoices("HARNESS_DOCKER_HOST", "DOCKER_HOST", "docker_host")
    )
    #: Folder with ca.pem, cert.pem and key.pem for an engine behind TLS.
    docker_cert_path: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("HARNESS_DOCKER_CERT_PATH", "DOCKER_CERT_PATH", "docker_cert_path"),
    )
    docker_tls_verify: bool = Field(
        default=False,
        validation_alias=AliasChoices("HARNESS_DOCKER_TLS_VERIFY", "DOCKER_TLS_VERIFY", "docker_tls_verify"),
    )
    docker_context: str | None = Field(
        default=None,
        validation_alias=AliasChoices("HARNESS_DOCKER_CONTEXT", "DOCKER_CONTEXT", "docker_context"),
    )
    #: Where a rootless engine keeps its socket; XDG Base Directory Specification.
    runtime_dir: Path = Field(
        default_factory=lambda: Path(f"/run/user/{os.getuid()}"),
        validation_alias=AliasChoices("XDG_RUNTIME_DIR", "runtime_dir"),
    )
    #: Image of Python agents. Not set: the product's own, built when it is missing.
    sandbox_image: str | None = None
    #: Runtime of the engine that containers are made with, such as gVisor's ``runsc``. Not set: the engine's default.
    sandbox_runtime: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = None
    #: AppArmor profile for them, loaded into the kernel by somebody else. Not set: the engine's own, where it has AppArmor.
    apparmor_profile: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,127}$"),
        AfterValidator(_check_profile),
    ] = None

    #: Networks that agents with an `egress` list may reach though they are not public, as CIDRs with commas between them.
    #: Link-local, metadata and multicast addresses stay refused.
    egress_private: Annotated[str, AfterValidator(_network_list)] = ""

    #: Containers that a worker keeps waiting for tasks it expects, so that their runs begin at once; 0: none. And about
    #: how much memory they may take.
    warm_containers: Annotated[int, Field(ge=0, le=1000)] = 4
    warm_memory_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 256

    #: Keys that secrets are encrypted with, made by ``harness secrets keygen``, with commas between them: the first one
    #: encrypts, all decrypt.
    secrets_key: Annotated[SecretStr | None, AfterValidator(_check_keys)] = None
    #: File with such keys instead, one a line; read whenever they are needed.
    secrets_key_file: Path | None = None

    #: Where OpenTelemetry sends spans. Its SDK reads this and all its other variables itself; here it only says whether.
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"
        ),
    )

    #: How long a claim on a running task holds without a heartbeat. A dead runner's task is noticed after this.
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    #: Limits for what an agent's config leaves open.
    cpus: Annotated[float, Field(ge=0.01, le=1024)] = 1.0
    max_processes: Annotated[int, Field(ge=8, le=32768)] = 64
    max_tmp_mb: Annotated[int, Field(ge=1)] = 64
    grace_seconds: Annotated[float, Field(ge=0, le=300)] = 10
    max_output_bytes: Annotated[int, Field(ge=1024, le=256 * MIB)] = MIB
    max_state_bytes: Annotated[int, Field(ge=256, le=4 * MIB)] = DEFAULT_MAX_STATE_BYTES

    #: How much of an agent's history is kept where its config does not say; 0: all of it. By default what an hourly agent
    #: does is kept for a quarter of a year, and one that runs every minute still has a bound.
    retention_task_days: Days = 90
    retention_max_tasks: Annotated[int, Field(ge=0, le=MAX_KEPT)] = 10_000
    retention_log_days: Days = 30
    retention_artifact_days: Days = 0
    retention_max_artifacts: Annotated[int, Field(ge=0, le=MAX_KEPT)] = 100

    @classmethod
    def load(cls) -> Settings:
        """Read the environment.

        Raises:
            SettingsError: Naming each malformed variable, without the values of secrets.
        """
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError(f"settings are not valid: {_describe(error)}") from None

    def listening_at(self, host: str | None, port: int | None) -> Settings:
        """Return these settings with another address; None keeps what they say.

        Raises:
            InvalidInputError: It is no address.
        """
        try:
            changed = self.host if host is None else _listening_address(host)
        except ValueError as error:
            raise InvalidInputError(f"--host {host} is refused: {error}") from None
        return self.model_copy(update={"host": changed, "port": self.port if port is None else port})

    @property
    def is_loopback(self) -> bool:
        """Whether the server listens where nobody but this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        variable, secret = _find_variable(str(problem["loc"][0]) if problem["loc"] else "HARNESS_*")
        got = "" if secret else quote_value(problem["input"])
        lines.append(f"{variable}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _find_variable(name: str) -> tuple[str, bool]:
    """Return the environment variable behind a field name or alias, and whether its value is a secret."""
    for field_name, field in Settings.model_fields.items():
        alias = field.validation_alias
        variables = [f"HARNESS_{field_name.upper()}"]
        if isinstance(alias, AliasChoices):
            variables = [str(choice) for choice in alias.choices]
        if name == field_name or name in variables:
            variable = next((choice for choice in variables if os.environ.get(choice)), variables[0])
            return variable, SecretStr in (field.annotation, *get_args(field.annotation))
    return name, True


@functools.cache
def get_settings() -> Settings:
    """Return the settings of this process, read from the environment on the first call."""
    return Settings.load()
