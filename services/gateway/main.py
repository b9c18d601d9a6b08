"""The gateway's process: `python -m services.gateway.main`."""

import asyncio
import logging
import socket
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
import uvloop

from baton.api_keys import KeyFile as KeysOnDisk
from baton.client import RouterClient
from baton.config import Config, load_config
from baton.errors import ConfigError, StartupError
from baton.ports import GATEWAY_PORT, ROUTER_PORT
from baton.process import CANNOT_START, ConfigFile, Host, Name
from baton.telemetry.providers import start_telemetry
from services.gateway.access import Access
from services.gateway.app import make_app
from services.gateway.console import Console

logger = logging.getLogger(__name__)

DRAIN_GRACE_S = 10

HttpPort = Annotated[int, typer.Option("--port", min=0, max=65535, help="HTTP port.")]
Router = Annotated[str, typer.Option("--router", metavar="HOST:PORT", help="The router to call.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FILE", help="Key file of `baton key`; none lets everybody in."),
]


def serve(
    config: ConfigFile = None,
    host: Host = "",
    port: HttpPort = GATEWAY_PORT,
    name: Name = "gateway",
    router: Router = f"127.0.0.1:{ROUTER_PORT}",
    keys: KeyFile = None,
) -> None:
    """Offer the OpenAI-compatible HTTP API and the console until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = load_config(config)
        access = Access(KeysOnDisk(keys) if keys is not None else None)
        uvloop.run(_run(settings, host or settings.mesh.host, port, name, router, access))
    except (ConfigError, StartupError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(CANNOT_START) from None


async def _run(
    config: Config, host: str, port: int, name: str, router_address: str, access: Access
) -> None:
    telemetry = start_telemetry("baton-gateway", name, config.mesh.otlp_endpoint)
    try:
        async with RouterClient(router_address) as router:
            console = Console(router, access)
            app = make_app(router, access, telemetry, console)
            server = _Server(
                uvicorn.Config(
                    app,
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    timeout_graceful_shutdown=DRAIN_GRACE_S,
                ),
                console,
            )
            with _bound(host, port) as listening:
                address = "{}:{}".format(*listening.getsockname())
                logger.info("gateway listening address=%s router=%s", address, router_address)
                await server.serve([listening])
    finally:
        await asyncio.to_thread(telemetry.shutdown)


def _bound(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises StartupError when the address cannot be had."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port"
        ) from error


class _Server(uvicorn.Server):
    """Ends the console's endless streams first, so that shutting down waits for answers only."""

    def __init__(self, config: uvicorn.Config, console: Console) -> None:
        super().__init__(config)
        self._console = console

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, then waits for running answers."""
        self._console.is_closing = True
        await super().shutdown(sockets)


def main() -> None:
    """Runs the command line."""
    typer.run(serve)


if __name__ == "__main__":
    main()
