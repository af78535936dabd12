"""The settings: one frozen object read from `HARNESS_*` (and Docker's own variables), once.

Nothing else in the product reads the environment. `get_settings` is for programs that pass no settings of their own,
as the API description's examples do; everything below the composition root takes what it needs as arguments.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from harness.config import DEFAULT_MAX_STATE_BYTES, MAX_KEPT, MIB, Days, quote_value
from harness.errors import InvalidInputError, SettingsError
from harness.secrets.cipher import parse_keys


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


def loopback_address(host: str) -> str:
    """Return the address behind ``localhost`` or a loopback address.

    Raises:
        ValueError: Others could reach it.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            "the API has no tokens yet, so it listens on this machine only: 127.0.0.1, ::1 or localhost; for others put a "
            "proxy that asks who they are in front of it"
        )
    return host


def _check_keys(keys: SecretStr | None) -> SecretStr | None:
    if keys is not None:
        parse_keys(keys.get_secret_value())
    return keys


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

    #: Where `harness serve` listens: a loopback address, as long as there are no tokens to ask for. Port 0: any.
    host: Annotated[str, AfterValidator(loopback_address)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000

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

    #: Keys that secrets are encrypted with, made by ``harness secrets keygen``, with commas between them: the first one
    #: encrypts, all decrypt.
    secrets_key: Annotated[SecretStr | None, AfterValidator(_check_keys)] = None
    #: File with such keys instead, one a line; read whenever they are needed.
    secrets_key_file: Path | None = None

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
            InvalidInputError: Others could reach the address.
        """
        try:
            changed = self.host if host is None else loopback_address(host)
        except ValueError as error:
            raise InvalidInputError(f"--host {host} is refused: {error}") from None
        return self.model_copy(update={"host": changed, "port": self.port if port is None else port})


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
