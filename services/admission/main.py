"""Admission's process: reads the settings, runs until a signal, drains."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from baton.config import Config, load_config
from baton.errors import ConfigError, StartupError
from baton.rpc.server import stop_signal
from baton.state.background import running
from baton.state.connect import connect, ping_or_fail
from baton.state.registry import Registration
from baton.telemetry.providers import start_telemetry
from services.admission.app import Listening, running_admission

logger = logging.getLogger(__name__)

EXIT_CANNOT_START = 2


def main() -> None:
    """Entry point of `baton-admission`."""
    typer.run(_command)


def _command(
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind; default mesh.host.")] = "",
    port: Annotated[int, typer.Option(help="Port; 0 takes any.")] = 0,
    name: Annotated[str, typer.Option(help="Name in the registry.")] = "",
    advertise: Annotated[str, typer.Option(help="host:port that others use.")] = "",
) -> None:
    """Grant permits: who may enter the mesh, and when."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = load_config(config)
        listening = Listening(host or settings.mesh.host, port, name, advertise)
        uvloop.run(_serve(settings, listening))
    except (ConfigError, StartupError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from error


async def _serve(config: Config, listening: Listening) -> None:
    url = config.mesh.redis_url
    if not url:
        raise StartupError("no Redis is configured; set REDIS_URL or mesh.redis_url")
    stop = stop_signal()
    redis = connect(url)
    telemetry = start_telemetry(
        "baton-admission", listening.name or "admission", config.mesh.otlp_endpoint
    )
    try:
        await ping_or_fail(redis, url)
        async with running_admission(config, listening, redis, telemetry) as app:
            logger.info(
                "admission listening address=%s worker=%s",
                app.address,
                app.registration.record.worker_id,
            )
            async with running(_stop_when_lost(app.registration, stop)):
                await stop.wait()
            logger.info("admission draining")
    finally:
        await redis.aclose()
        await asyncio.to_thread(telemetry.shutdown)


async def _stop_when_lost(registration: Registration, stop: asyncio.Event) -> None:
    await registration.wait_lost()
    logger.error("another process took the name %s over", registration.record.worker_id)
    stop.set()


if __name__ == "__main__":
    main()
