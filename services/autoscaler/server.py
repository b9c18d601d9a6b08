"""AutoscalerService: the last look as a message, and overrides."""

import time
from collections.abc import Callable
from typing import Any

import grpc

from baton.errors import InvalidRequestError, UnavailableError
from baton.rpc.server import statuses
from baton.state.connect import REDIS_ERRORS
from baton.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from services.autoscaler.observer import Observer
from services.autoscaler.overrides import Overrides
from services.autoscaler.scaler import Look, Scaler
from services.autoscaler.state import Pool

SERVICE = "baton.v1.AutoscalerService"


class AutoscalerServer(autoscaler_pb2_grpc.AutoscalerServiceServicer):
    """Shows what one scaler saw and decided."""

    def __init__(
        self,
        scaler: Scaler,
        observer: Observer,
        overrides: Overrides,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scaler = scaler
        self._observer = observer
        self._overrides = overrides
        self._clock = clock

    async def GetStatus(
        self,
        request: autoscaler_pb2.GetStatusRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> autoscaler_pb2.GetStatusResponse:
        """Shows the last decision."""
        scaler = self._scaler
        response = autoscaler_pb2.GetStatusResponse(
            leader=scaler.leadership.leader,
            is_leader=scaler.leadership.is_leader,
            policy=scaler.policy.name,
            orchestrator=scaler.orchestrator.name,
            problems=scaler.problems,
        )
        if (look := scaler.last) is not None:
            age_s = self._clock() - look.at_s
            response.decision_age.FromNanoseconds(round(age_s * 1e9))
            response.flips = look.decision.flips
            response.pools.extend(self._status(pool, look) for pool in Pool)
        return response

    async def SetOverride(
        self,
        request: autoscaler_pb2.SetOverrideRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> autoscaler_pb2.SetOverrideResponse:
        """Fixes a pool's size or gives it back to the policy."""
        async with statuses(context):
            replicas = request.replicas if request.HasField("replicas") else None
            try:
                await self._overrides.set(_pool(request.pool), replicas)
            except REDIS_ERRORS as error:
                raise UnavailableError(f"Redis does not answer: {error}") from error
        return autoscaler_pb2.SetOverrideResponse()

    def _status(self, pool: Pool, look: Look) -> autoscaler_pb2.PoolStatus:
        state, target = look.fleet.pool(pool), look.decision.target(pool)
        return autoscaler_pb2.PoolStatus(
            pool=pool.value,
            ready=state.ready,
            starting=state.starting,
            draining=state.draining,
            failed=self._observer.replicas[pool].failed,
            target=target.replicas,
            reason=target.reason.value,
            numbers=target.numbers,
            override_replicas=look.overrides.get(pool),
        )


def _pool(name: str) -> Pool:
    try:
        return Pool(name)
    except ValueError:
        raise InvalidRequestError(
            f"no pool {name!r}; prefill and decode are", field="pool"
        ) from None
