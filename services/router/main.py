"""The router's process: `python -m services.router.main`."""

import logging

import typer

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
from baton.state.background import running
from services.router.app import running_router
from services.router.model import load_served_model

logger = logging.getLogger(__name__)


def serve(
    config: ConfigFile = None,
    host: Host = "",
    port: Port = None,
    name: Name = "",
    advertise: Advertise = "",
) -> None:
    """Accept requests, place them on workers and stream the answers until told to stop."""
    options = ProcessOptions(config, host, port, name, advertise)
    run_process("router", options, _serve, ROUTER_PORT)


async def _serve(around: Surroundings) -> None:
    model = load_served_model(around.config.model)
    async with running_router(
        around.config, around.listening, model, around.redis, around.telemetry
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
