"""The stack's ear for the autoscaler: OrchestratorService on a free port of loopback."""

from collections.abc import Callable
from typing import Any

import grpc

from baton.errors import InvalidRequestError
from baton.local.member import Member, MemberState
from baton.local.pools import WorkerPools
from baton.local.roles import Role
from baton.rpc.server import ServiceServer, statuses
from baton.state.embedded import HOST
from baton.v1 import orchestrator_pb2, orchestrator_pb2_grpc

SERVICE = "baton.v1.OrchestratorService"
MAX_REPLICAS = 256

_STATES = {
    MemberState.READY: "ready",
    MemberState.STOPPING: "stopping",
    MemberState.STOPPED: "stopping",
    MemberState.FAILED: "failed",
}


class StackControl(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Serves the pools of one stack."""

    def __init__(self, pools: Callable[[], WorkerPools]) -> None:
        self._pools = pools
        self._server = ServiceServer(HOST, 0, [SERVICE])

    @property
    def address(self) -> str:
        """host:port, once started."""
        return self._server.address

    async def start(self) -> None:
        """Binds and serves."""
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, self._server.grpc)
        await self._server.start()
        await self._server.set_ready(True)

    async def stop(self) -> None:
        """Hangs up."""
        await self._server.drain(0)

    async def GetPools(  # noqa: N802
        self,
        request: orchestrator_pb2.GetPoolsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> orchestrator_pb2.GetPoolsResponse:
        """Shows both pools."""
        pools = self._pools()
        response = orchestrator_pb2.GetPoolsResponse()
        for role, size in pools.sizes.items():
            pool = response.pools.add(pool=role.value, replicas=size.replicas)
            pool.workers.extend(map(_process, pools.workers(role)))
            if (start_s := pools.last_start_s(role)) is not None:
                pool.last_start.FromNanoseconds(round(start_s * 1e9))
            if (move_s := pools.last_move_s(role)) is not None:
                pool.last_move.FromNanoseconds(round(move_s * 1e9))
        return response

    async def SetReplicas(  # noqa: N802
        self,
        request: orchestrator_pb2.SetReplicasRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> orchestrator_pb2.SetReplicasResponse:
        """Resizes a pool."""
        async with statuses(context):
            role = _role(request.pool)
            if request.replicas > MAX_REPLICAS:
                raise InvalidRequestError(f"at most {MAX_REPLICAS} workers", field="replicas")
            self._pools().set_replicas(role, request.replicas, request.victims)
        return orchestrator_pb2.SetReplicasResponse()

    async def MoveWorkers(  # noqa: N802
        self,
        request: orchestrator_pb2.MoveWorkersRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> orchestrator_pb2.MoveWorkersResponse:
        """Moves workers to the other pool."""
        async with statuses(context):
            self._pools().move(_role(request.to_pool), request.worker_ids)
        return orchestrator_pb2.MoveWorkersResponse()


def _role(pool: str) -> Role:
    for role in (Role.PREFILL, Role.DECODE):
        if role.value == pool:
            return role
    raise InvalidRequestError(f"no pool {pool!r}; prefill and decode are", field="pool")


def _process(member: Member) -> orchestrator_pb2.WorkerProcess:
    state = "stopping" if member.stopping.is_set() else _STATES.get(member.state, "starting")
    return orchestrator_pb2.WorkerProcess(
        worker_id=member.name, state=state, problem=member.problem
    )
