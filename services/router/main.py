"""The router's process: `python -m services.router.main`."""

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from baton.api_keys import KeyFile
from baton.ports import ROUTER_PORT
from baton.process import (
    Advertise,
    ConfigFile,
    Host,
    Name,
    Port,
    ProcessOptions,
    Surroundings,
    run_process,
    stop_when_lost,
)
from baton.rpc.identity import ENV_TLS_DIR, Identity
from baton.state.background import running
from services.router.access import Access
from services.router.app import running_router
from services.router.model import load_served_model

logger = logging.getLogger(__name__)


def serve(
    config: ConfigFile = None,
    host: Host = "",
    port: Port = None,
    name: Name = "",
    advertise: Advertise = "",
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="Key file of `baton key`; none admits all."),
    ] = None,
    share_port: Annotated[
        bool, typer.Option("--share-port", help="Let several routers listen on this port.")
    ] = False,
) -> None:
    """Accept requests, place them on workers and stream the answers until told to stop."""
    options = ProcessOptions(config, host, port, name, advertise, share_port)
    run_process("router", options, partial(_serve, keys), ROUTER_PORT)


async def _serve(keys: Path | None, around: Surroundings) -> None:
    access = Access(KeyFile(keys) if keys is not None else None)
    if keys is not None and Identity.of() is None:
        logger.warning("API keys travel in clear text: set %s", ENV_TLS_DIR)
    model = load_served_model(around.config.model)
    async with running_router(
        around.config, around.listening, model, around.redis, around.telemetry, access
    ) as app:
        logger.info("router listening address=%s model=%s", app.address, model.name)
        async with running(stop_when_lost(app.registration, around.stop)):
            await around.stop.wait()
        logger.info("router draining")


def main() -> None:
    """Runs the command line."""
    typer.run(serve)


if __name__ == "__main__":
    main()
