"""``harness socket-proxy``: stands between the product and a Docker Engine's socket."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.service import LogFormatOption, StopRequest, run_service
from harness.cli.servicelog import LogFormat

logger = logging.getLogger(__name__)


def socket_proxy(
    *,
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="URL", help="tcp://ADDRESS:PORT or unix:///PATH."),
    ],
    engine_socket: Annotated[
        Path,
        typer.Option("--engine-socket", metavar="PATH", help="Where the engine listens."),
    ] = Path("/var/run/docker.sock"),
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Let through to a Docker Engine what the product asks of it, and nothing else.

    For servers and runners that must not be root on their machine: whoever may use an engine's socket is. Containers
    can be made as sandboxes only, and only those can be seen or ended. Everything else is refused with a reason, and
    logged as `call_refused`. Images are built without it: `harness images build`. HARNESS_SANDBOX_RUNTIME and
    HARNESS_APPARMOR_PROFILE must be set for it as for what runs behind it: containers without them are refused then.

    \b
    Examples:
      harness socket-proxy --listen unix:///run/harness/docker.sock
      HARNESS_DOCKER_HOST=unix:///run/harness/docker.sock harness serve
    """

    async def work(request: StopRequest) -> None:
        from harness.sandbox.proxy.server import SocketProxy
        from harness.settings import get_settings
        from harness.wiring import isolation_of

        async with SocketProxy(engine_socket, isolation=isolation_of(get_settings())).listening(
            listen
        ) as url:
            logger.info(
                "listening at %s, before the engine at %s",
                url,
                engine_socket,
                extra={"action": "started", "url": url},
            )
            await request.wait()

    run_service(work, log_format)
