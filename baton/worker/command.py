"""The command line that both worker roles share."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from baton.config import Config, load_config
from baton.errors import ConfigError, RegistrationError, StartupError
from baton.rpc.server import stop_signal
from baton.state.connect import connect, ping_or_fail
from baton.state.records import WorkerRole, new_incarnation
from baton.telemetry.providers import start_telemetry
from baton.worker.build import build_engine, build_transport
from baton.worker.host import WorkerHost, WorkerIdentity
from baton.worker.parts import RoleService, WorkerParts

STARTUP_FAILED = 2

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file; else BATON_CONFIG or none.")
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to listen on; default mesh.host.")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")]
Name = Annotated[
    str | None, typer.Option("--name", help="Worker id; a restart keeps it. Default: made up.")
]
Advertise = Annotated[
    str | None,
    typer.Option("--advertise", metavar="HOST:PORT", help="Address that others reach it at."),
]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The command line of a worker, as given."""

    config_file: Path | None
    host: str | None
    port: int
    name: str | None
    advertise: str | None


def run_worker(
    role: WorkerRole,
    options: WorkerOptions,
    build_service: Callable[[WorkerParts], RoleService],
) -> None:
    """Runs a worker until SIGTERM or SIGINT; exits with 2 and one line when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(_serve(role, options, build_service))
    except (ConfigError, StartupError, RegistrationError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(STARTUP_FAILED) from None


async def _serve(
    role: WorkerRole,
    options: WorkerOptions,
    build_service: Callable[[WorkerParts], RoleService],
) -> None:
    stop = stop_signal()
    config = load_config(options.config_file)
    identity = _identify(role, options, config)
    redis = connect(config.mesh.redis_url)
    try:
        # Asked before the engine is loaded, which takes much longer.
        await ping_or_fail(redis, config.mesh.redis_url)
        engine = build_engine(config)
        transport = build_transport(config, identity.incarnation)
        telemetry = start_telemetry(
            f"baton-{role.value}", identity.worker_id, config.mesh.otlp_endpoint
        )
        try:
            host = WorkerHost(identity, config, engine, transport, telemetry, build_service)
            await host.run(redis, stop)
        finally:
            await asyncio.to_thread(telemetry.shutdown)
    finally:
        await redis.aclose()


def _identify(role: WorkerRole, options: WorkerOptions, config: Config) -> WorkerIdentity:
    if not config.mesh.redis_url:
        raise ConfigError(
            "a worker finds its fleet through Redis: set mesh.redis_url or REDIS_URL "
            "(`baton up` starts everything on this machine, a Redis included)"
        )
    incarnation = new_incarnation()
    return WorkerIdentity(
        worker_id=options.name or f"{role.value}-{incarnation[:8]}",
        incarnation=incarnation,
        role=role,
        host=options.host or config.mesh.host,
        port=options.port,
        advertise=options.advertise,
    )
