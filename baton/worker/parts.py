"""What a worker is built from, and what its role has to bring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from baton.config import Config
from baton.engine.base import Engine
from baton.kv.transfer import KvTransport
from baton.state.fleet import FleetView
from baton.telemetry.providers import Telemetry
from baton.v1 import types_pb2
from baton.worker.costs import CostBook
from baton.worker.gate import WorkGate


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """Everything that a role's service works with.

    `describe` returns the worker and its figures of this moment; call it once the server listens.
    """

    worker_id: str
    config: Config
    engine: Engine
    transport: KvTransport
    telemetry: Telemetry
    gate: WorkGate
    fleet: FleetView
    describe: Callable[[], types_pb2.WorkerInfo]
    costs: CostBook = field(default_factory=CostBook)


class RoleService(Protocol):
    """The gRPC service of one role, as the worker's process runs it."""

    names: Sequence[str]
    """Full names of its gRPC services."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers its handlers."""
        ...

    async def prepare(self) -> None:
        """Does what must be done before the worker joins the fleet; the fleet can be seen."""
        ...

    def fault(self) -> str:
        """Returns why the worker cannot do its work now, for people; empty while it can."""
        ...

    async def run(self) -> None:
        """Does background work until cancelled; ends what belongs to it."""
        ...
