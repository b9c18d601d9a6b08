"""Admission's process: `python -m services.admission.main`."""

import logging

import typer

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
from services.admission.app import running_admission

logger = logging.getLogger(__name__)


def serve(
    config: ConfigFile = None,
    host: Host = "",
    port: Port = None,
    name: Name = "",
    advertise: Advertise = "",
) -> None:
    """Grant permits, who may enter the mesh and when, until told to stop."""
    run_process("admission", ProcessOptions(config, host, port, name, advertise), _serve)


async def _serve(around: Surroundings) -> None:
    async with running_admission(
        around.config, around.listening, around.redis, around.telemetry
    ) as app:
        logger.info("admission listening address=%s", app.address)
        async with running(stop_when_lost(app.registration, around.stop)):
            await around.stop.wait()
        logger.info("admission draining")


def main() -> None:
    """Runs the command line."""
    typer.run(serve)


if __name__ == "__main__":
    main()
