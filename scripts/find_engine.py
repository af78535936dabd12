"""Prints the address of a Docker Engine that answers, as a value for DOCKER_HOST.

Looks where the docker command looks: DOCKER_HOST, the current context, the system's socket; then at the socket of a
rootless engine. Needs no docker command.

Exit status: 0 found; 1 there is an engine that was asked for or is there, and it can't be used (why is on stderr);
3 there is none.
"""

import os
import sys
from pathlib import Path

import docker
from docker.context import ContextAPI
from docker.context.config import get_current_context_name
from docker.errors import DockerException

FOUND, UNUSABLE, NONE = 0, 1, 3
SYSTEM_SOCKET = Path("/var/run/docker.sock")
#: An engine under load answers late; one that hangs must not hang the caller.
TIMEOUT_SECONDS = 10


def failure(host: str) -> str | None:
    """Return why the engine at `host` does not answer, or None when it does."""
    environment = {**os.environ, "DOCKER_HOST": host}
    try:
        client = docker.from_env(environment=environment, timeout=TIMEOUT_SECONDS)
        try:
            client.ping()
        finally:
            client.close()
    except (DockerException, OSError, ValueError) as error:
        return str(error)
    return None


def chosen() -> tuple[str, str] | None:
    """Return the engine that the user chose, as a pair of where it was chosen and its address."""
    if host := os.environ.get("DOCKER_HOST"):
        return "DOCKER_HOST", host
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    if name == "default":
        return None
    contexts = {context.name: str(context.Host) for context in ContextAPI.contexts()}
    return f"the Docker context {name!r}", contexts.get(name, "(no such context)")


def sockets() -> list[Path]:
    """Return where an engine that nobody named would listen."""
    paths = [SYSTEM_SOCKET]
    if runtime_dir := os.environ.get("XDG_RUNTIME_DIR"):
        paths.append(Path(runtime_dir, "docker.sock"))
    return [path for path in paths if path.is_socket()]


def main() -> int:
    """Print the address and return the exit status."""
    if engine := chosen():
        origin, host = engine
        if reason := failure(host):
            print(f"{origin} names the engine {host}, which does not answer: {reason}", file=sys.stderr)
            return UNUSABLE
        print(host)
        return FOUND

    forbidden: list[Path] = []
    for path in sockets():
        host = f"unix://{path}"
        if failure(host) is None:
            print(host)
            return FOUND
        if not os.access(path, os.R_OK | os.W_OK):
            forbidden.append(path)
    if forbidden:
        print(
            f"there is an engine at {forbidden[0]}, and this user may not use it: run "
            "'sudo usermod -aG docker $USER', log in anew, and run this again.",
            file=sys.stderr,
        )
        return UNUSABLE
    return NONE


if __name__ == "__main__":
    sys.exit(main())
