"""A worker's change of its role: asked for by gRPC, made between two lives of one process."""

import asyncio
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc

from baton.errors import InvalidRequestError, PreconditionError
from baton.rpc.server import statuses
from baton.state.records import WorkerRole
from baton.v1 import worker_pb2, worker_pb2_grpc
from baton.worker.parts import RoleService, WorkerParts

logger = logging.getLogger(__name__)

SERVICE = "baton.v1.WorkerService"
ROLES = (WorkerRole.PREFILL, WorkerRole.DECODE)

BuildService = Callable[[WorkerParts], RoleService]


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What a worker is to become: its role, its name in it, and what serves it."""

    role: WorkerRole
    worker_id: str
    build_service: BuildService


class RoleDesk(worker_pb2_grpc.WorkerServiceServicer):
    """Takes one wish per life; `fixed_because` says why none can be met, empty if one can."""

    def __init__(self, role: WorkerRole, fixed_because: str) -> None:
        self.wish: RoleChange | None = None
        self._role = role
        self._fixed_because = fixed_because
        self._asked = asyncio.Event()

    async def wait_asked(self) -> None:
        """Returns once somebody asked."""
        await self._asked.wait()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, server)

    async def ChangeRole(  # noqa: N802
        self,
        request: worker_pb2.ChangeRoleRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> worker_pb2.ChangeRoleResponse:
        """Notes the wish; the process drains and meets it."""
        async with statuses(context):
            self._take(request)
        return worker_pb2.ChangeRoleResponse()

    def _take(self, request: worker_pb2.ChangeRoleRequest) -> None:
        if request.role not in ROLES or not request.worker_id:
            raise InvalidRequestError("name a role, prefill or decode, and a worker", field="role")
        if self._fixed_because:
            raise PreconditionError(self._fixed_because, reason="ROLE_FIXED")
        if self.wish is not None or request.role == self._role:
            given = self.wish.role if self.wish is not None else self._role
            raise PreconditionError(
                f"the worker is or becomes a {given} worker already", reason="ROLE_FIXED"
            )
        role = WorkerRole(request.role)
        self.wish = RoleChange(role, request.worker_id, load_builder(role))
        logger.info("role changes to=%s as=%s", role.value, request.worker_id)
        self._asked.set()


def load_builder(role: WorkerRole) -> BuildService:
    """Returns what makes a role's service, by name only: `baton` never imports services.

    Raises PreconditionError where it is not installed.
    """
    try:
        module = importlib.import_module(f"services.{role.value}.main")
    except ImportError as error:
        raise PreconditionError(
            f"the {role.value} service is not installed here: {error}", reason="ROLE_FIXED"
        ) from error
    return cast("BuildService", module.build_service)
