"""Worker processes of a local stack (`baton up --autoscale`), asked through its control port."""

from collections.abc import Mapping, Sequence

import grpc

from baton.rpc.channels import open_channel
from baton.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from services.autoscaler.orchestrators.base import OrchestratorError, PoolReplicas
from services.autoscaler.state import Pool

TIMEOUT_S = 5.0


class LocalOrchestrator:
    """Asks the stack that listens at `control`."""

    name = "local"
    moves = True

    def __init__(self, control: str) -> None:
        self._channel = open_channel(control)
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channel)

    async def observe(self) -> Mapping[Pool, PoolReplicas]:
        """See Orchestrator."""
        try:
            answer = await self._stub.GetPools(
                orchestrator_pb2.GetPoolsRequest(), timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise OrchestratorError(f"the local stack does not answer: {error.code()}") from error
        return {Pool(pool.pool): _replicas(pool) for pool in answer.pools}

    async def scale(self, pool: Pool, replicas: int, victims: Sequence[str] = ()) -> None:
        """See Orchestrator."""
        request = orchestrator_pb2.SetReplicasRequest(
            pool=pool.value, replicas=replicas, victims=victims
        )
        try:
            await self._stub.SetReplicas(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise OrchestratorError(f"the local stack refuses: {error.details()}") from error

    async def move(self, to: Pool, workers: Sequence[str]) -> None:
        """See Orchestrator."""
        request = orchestrator_pb2.MoveWorkersRequest(to_pool=to.value, worker_ids=workers)
        try:
            await self._stub.MoveWorkers(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise OrchestratorError(f"the local stack refuses: {error.details()}") from error

    async def close(self) -> None:
        """See Orchestrator."""
        await self._channel.close()


def _replicas(pool: orchestrator_pb2.WorkerPool) -> PoolReplicas:
    failed = [worker for worker in pool.workers if worker.state == "failed"]
    start_s = pool.last_start.ToNanoseconds() / 1e9 if pool.HasField("last_start") else None
    problem = f"{failed[-1].worker_id} {failed[-1].problem}" if failed else ""
    return PoolReplicas(pool.replicas, len(failed), problem, start_s)
