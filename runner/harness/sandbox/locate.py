"""Where the Docker Engine is: looked for where the docker command looks, then at a rootless engine's socket.

``python -m harness.sandbox.locate`` prints the address of an engine that answers, as a value for DOCKER_HOST. Its exit
status: 0 found; 1 one was asked for, or is there, and can't be used (stderr says why); 3 there is none.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import docker
import docker.errors
import docker.tls
from docker.context.config import get_current_context_name

from harness.errors import EngineUnavailableError

if TYPE_CHECKING:
    from harness.settings import Settings

SYSTEM_SOCKET = Path("/var/run/docker.sock")
#: An engine under load answers late; one that hangs must not hang whoever looks for it.
PROBE_TIMEOUT_SECONDS = 10

_SCHEMES = ("unix", "tcp", "http", "https")


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine answers."""

    #: ``unix:///…`` or ``tcp://host:port``.
    url: str
    #: Who named it: ``DOCKER_HOST``, ``the Docker context 'x'``; None: nobody, it is one of the usual sockets.
    named_by: str | None = None
    #: Folder with ca.pem, cert.pem and key.pem; None: no TLS.
    cert_path: Path | None = None
    tls_verify: bool = True

    def tls_config(self) -> docker.tls.TLSConfig | None:
        """Return the SDK's form of the TLS settings."""
        if self.cert_path is None:
            return None
        pair = (str(self.cert_path / "cert.pem"), str(self.cert_path / "key.pem"))
        return docker.tls.TLSConfig(
            client_cert=pair, ca_cert=str(self.cert_path / "ca.pem"), verify=self.tls_verify
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return asyncio's form of the TLS settings."""
        if self.cert_path is None:
            return None
        context = ssl.create_default_context(cafile=str(self.cert_path / "ca.pem"))
        context.load_cert_chain(self.cert_path / "cert.pem", self.cert_path / "key.pem")
        if not self.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def find_engine(settings: Settings) -> EngineAddress:
    """Pick the engine: the one named, else the current Docker context's, else the first usual socket that listens.

    Raises:
        EngineUnavailableError: What was named can't be used; the message says what can.
    """
    named_by, url = _named(settings)
    if url is None:
        paths = [SYSTEM_SOCKET, settings.runtime_dir / "docker.sock"]
        return EngineAddress(f"unix://{next(filter(_listens, paths), SYSTEM_SOCKET)}")
    scheme = urlsplit(url).scheme
    if scheme not in _SCHEMES:
        raise EngineUnavailableError(
            f"{named_by} names the engine {url!r}, which can't be used: give unix:///path/to/docker.sock or tcp://host:port"
        )
    with_tls = settings.docker_cert_path is not None and (settings.docker_tls_verify or scheme == "https")
    return EngineAddress(
        url, named_by, settings.docker_cert_path if with_tls else None, settings.docker_tls_verify
    )


def _named(settings: Settings) -> tuple[str | None, str | None]:
    if settings.docker_host is not None:
        return "DOCKER_HOST", settings.docker_host
    try:
        name = settings.docker_context or get_current_context_name()
        if name == "default":
            return None, None
        hosts = {context.name: str(context.Host) for context in docker.ContextAPI.contexts()}
    except (docker.errors.DockerException, OSError, ValueError) as error:
        raise EngineUnavailableError(
            f"the Docker contexts can't be read ({error}); mend ~/.docker, or set DOCKER_HOST"
        ) from error
    if name not in hosts:
        raise EngineUnavailableError(f"there is no Docker context {name!r}; run: docker context ls")
    return f"the Docker context {name!r}", hosts[name]


def _listens(path: Path) -> bool:
    """Tell whether somebody whom this user may talk to listens on a socket; a crashed engine leaves a dead one."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _failure(address: EngineAddress) -> str | None:
    """Return why an engine does not answer, or None when it does."""
    try:
        client = docker.APIClient(
            address.url, version="auto", timeout=PROBE_TIMEOUT_SECONDS, tls=address.tls_config() or False
        )
        try:
            client.ping()
        finally:
            client.close()
    except (docker.errors.DockerException, OSError, ValueError) as error:
        return str(error)
    return None


def main() -> int:
    """Print the address of an engine that answers; return the exit status."""
    from harness.settings import get_settings

    try:
        address = find_engine(get_settings())
    except EngineUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    problem = _failure(address)
    if problem is None:
        print(address.url)
        return 0
    if address.named_by is not None:
        print(
            f"{address.named_by} names the engine {address.url}, which does not answer: {problem}",
            file=sys.stderr,
        )
        return 1
    if SYSTEM_SOCKET.exists() and not os.access(SYSTEM_SOCKET, os.R_OK | os.W_OK):
        print(
            f"there is an engine at {SYSTEM_SOCKET}, and this user may not use it: run "
            "'sudo usermod -aG docker $USER', log in anew, and run this again.",
            file=sys.stderr,
        )
        return 1
    return 3


if __name__ == "__main__":
    sys.exit(main())
