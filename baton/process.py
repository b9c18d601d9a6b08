"""What every service process does around its work: options, settings, Redis, telemetry, exit.

A process that cannot start says why in one line on stderr and exits with CANNOT_START.
"""

import asyncio
import faulthandler
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from redis.asyncio import Redis

from baton.collector import collect_in_steps, quieten_collector
from baton.config import Config, load_config
from baton.errors import ConfigError, RegistrationError, StartupError
from baton.log import start_logging
from baton.rpc.server import Listening, stop_signal
from baton.state.background import running
from baton.state.connect import connect, ping_or_fail
from baton.state.registry import Registration
from baton.telemetry.providers import Telemetry, start_telemetry
from baton.telemetry.stalls import watch_loop

logger = logging.getLogger(__name__)

CANNOT_START = 2

STOP_WITHIN_S = 40.0
"""Longest that a process which was told to stop may take: drains have limits of their own."""

END_WITHIN_S = 8.0
"""Longest that a process may take to end once its service has: it sends its last telemetry."""

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file; else BATON_CONFIG or none.")
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; default mesh.host.")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")
]
Name = Annotated[
    str, typer.Option("--name", help="Its id in the fleet; a restart keeps it. Default: made up.")
]
Advertise = Annotated[
    str, typer.Option("--advertise", metavar="HOST:PORT", help="Address that others reach it at.")
]


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """The command line of a service, as given; an empty field takes the settings' value."""

    config_file: Path | None
    host: str
    port: int | None
    name: str
    advertise: str
    shares_port: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a running service stands on. `stop` is set by SIGTERM and SIGINT."""

    config: Config
    listening: Listening
    redis: Redis
    telemetry: Telemetry
    stop: asyncio.Event


Serve = Callable[[Surroundings], Awaitable[None]]


def run_process(
    service: str,
    options: ProcessOptions,
    serve: Serve,
    default_port: int = 0,
) -> None:
    """Runs `serve` until it returns. `default_port` is for options that leave it open."""
    start_logging()
    try:
        config = load_config(options.config_file)
        listening = Listening(
            host=options.host or config.mesh.host,
            port=default_port if options.port is None else options.port,
            name=options.name,
            advertise=options.advertise,
            shares_port=options.shares_port,
        )
        quieten_collector()
        uvloop.run(_run(service, config, listening, serve))
    except (ConfigError, StartupError, RegistrationError) as error:
        logging.shutdown()  # what is logged comes first: the last line is the reason
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(CANNOT_START) from None


async def _run(service: str, config: Config, listening: Listening, serve: Serve) -> None:
    url = config.mesh.redis_url
    if not url:
        raise StartupError(
            "a service finds its fleet through Redis: set mesh.redis_url or REDIS_URL "
            "(`baton up` starts everything on this machine, a Redis included)"
        )
    stop = stop_signal()
    redis = connect(url)
    telemetry = start_telemetry(
        f"baton-{service}", listening.name or service, config.mesh.otlp_endpoint
    )
    try:
        await ping_or_fail(redis, url)
        async with (
            running(watch_loop(telemetry)),
            running(collect_in_steps()),
            running(_stop_in_time(stop)),
        ):
            await serve(Surroundings(config, listening, redis, telemetry, stop))
    finally:
        _end_within(END_WITHIN_S)
        await redis.aclose()
        await asyncio.to_thread(telemetry.shutdown)


async def _stop_in_time(stop: asyncio.Event) -> None:
    await stop.wait()
    _end_within(STOP_WITHIN_S)


def _end_within(seconds: float) -> None:
    """Has the kernel end the process after `seconds`, and says first where its threads stand.

    A process that hangs at its end keeps its port and its supervisor waiting. Without memory for a
    new thread it does: Python waits for ever for a thread that died at birth.
    """
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)


async def stop_when_lost(registration: Registration, stop: asyncio.Event) -> None:
    """Sets `stop` when another process has taken the name over."""
    await registration.wait_lost()
    logger.error("another process took the name %s over", registration.record.worker_id)
    stop.set()
