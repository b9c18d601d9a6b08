"""A gRPC server as every Baton service runs it: health, reflection, graceful drain."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from baton.errors import BatonError, StartupError
from baton.rpc.channels import SERVER_OPTIONS
from baton.rpc.identity import Identity
from baton.rpc.status import to_status

logger = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


EVERYWHERE = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104  # named to be recognised
"""Hosts that bind every interface and so are no address that a peer could call."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a process listens and how others find it; empty fields take what the host offers.

    With `shares_port` the system spreads new connections over all processes that listen there.
    """

    host: str
    port: int
    name: str = ""
    advertise: str = ""
    shares_port: bool = False


class ServiceServer:
    """One listening server. Health: "" means alive; the named services mean ready for work.

    Where the process has an identity it speaks TLS, and only with members of the fleet unless it
    `admits_strangers`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        services: Sequence[str],
        *,
        admits_strangers: bool = False,
        shares_port: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        # Unless told so, a taken port is an error and no silent share.
        options = [*SERVER_OPTIONS, ("grpc.so_reuseport", int(shares_port))]
        self.grpc = grpc.aio.server(options=options)
        self._services = services
        self._admits_strangers = admits_strangers
        self._health = health_aio.HealthServicer()

    @property
    def address(self) -> str:
        """host:port, once started."""
        return f"{self.host}:{self.port}"

    def advertised(self, given: str = "") -> str:
        """Returns the address given, or the one bound; "everywhere" is no address, so the host's.

        Call it once started.
        """
        if given:
            return given
        if self.host in EVERYWHERE:
            return f"{socket.gethostname()}:{self.port}"
        return self.address

    async def start(self) -> None:
        """Binds and starts; named services answer NOT_SERVING until `set_ready`.

        Raises StartupError when the port is taken.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        names = (*self._services, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc)
        try:
            self.port = self._bind()
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self.address}: the port is taken or the address is not this "
                "host's; choose another with --port"
            ) from error
        await self._health.set("", SERVING)
        await self.set_ready(False)
        await self.grpc.start()

    def _bind(self) -> int:
        identity = Identity.of()
        if identity is None:
            return self.grpc.add_insecure_port(self.address)
        credentials = identity.server_credentials(self._admits_strangers)
        return self.grpc.add_secure_port(self.address, credentials)

    async def set_ready(self, is_ready: bool) -> None:
        """Tells health checkers whether the named services take work."""
        for name in self._services:
            await self._health.set(name, SERVING if is_ready else NOT_SERVING)

    async def drain(self, grace_s: float) -> None:
        """Takes no new work, lets running requests finish for `grace_s`, then stops."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)


def stop_signal() -> asyncio.Event:
    """Returns an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@asynccontextmanager
async def statuses(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Turns a BatonError that leaves the block into the RPC's rich status."""
    try:
        yield
    except BatonError as error:
        await context.abort_with_status(to_status(error))
