"""Asks processes of the stack whether they are ready, from outside as anybody could."""

import asyncio
import logging
from collections.abc import Collection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from baton.rpc.channels import open_channel
from baton.state import keys
from baton.state.connect import REDIS_ERRORS
from baton.state.records import WorkerRecord, decode_record
from baton.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0


async def redis_answers(redis: Redis, pid: int) -> bool:
    """Tells whether Redis answers and is the process `pid`, not somebody else's on its port."""
    try:
        server = await redis.info("server")
    except REDIS_ERRORS:
        return False
    return bool(server["process_id"] == pid)


async def find_record(redis: Redis, name: str, since_s: float) -> WorkerRecord | None:
    """Returns the registration of the process `name` that started after `since_s` (Unix time).

    An older one is the trace of an earlier life. None also when Redis is away.
    """
    try:
        data = await redis.get(keys.record(name))
        record = decode_record(data) if isinstance(data, bytes) else None
    except (*REDIS_ERRORS, ValueError):
        return None
    return record if record is not None and record.started_at_s >= since_s else None


async def is_serving(address: str, service: str) -> bool:
    """Tells whether the service's health is SERVING."""
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = await stub.Check(  # type: ignore[attr-defined]  # its type stubs lack it
                health_pb2.HealthCheckRequest(service=service), timeout=PROBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def http_answers(address: str, path: str) -> bool:
    """Tells whether a GET is answered with 200."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status


async def sees_workers(router: str, incarnations: Collection[str]) -> bool:
    """Tells whether the router knows these lives of workers and their figures."""
    async with open_channel(router) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        try:
            fleet = await stub.GetFleet(router_pb2.GetFleetRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
    seen = {worker.incarnation for worker in fleet.workers if worker.HasField("stats")}
    return seen >= set(incarnations)


async def connected_prefill_workers(decode: str) -> Collection[str]:
    """Returns the prefill workers whose pair with this decode worker is proven."""
    async with open_channel(decode) as channel:
        stub = decode_pb2_grpc.DecodeServiceStub(channel)
        try:
            state = await stub.GetState(
                decode_pb2.DecodeServiceGetStateRequest(), timeout=PROBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return ()
    return tuple(state.connected_prefill_workers)


async def change_role(address: str, role: str, worker_id: str) -> bool:
    """Asks a worker to change its role; tells whether it will."""
    async with open_channel(address) as channel:
        request = worker_pb2.ChangeRoleRequest(role=role, worker_id=worker_id)
        try:
            await worker_pb2_grpc.WorkerServiceStub(channel).ChangeRole(
                request, timeout=PROBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            logger.info("worker keeps its role address=%s: %s", address, error.details())
            return False
    return True


async def poll_pause() -> None:
    """Waits between two questions."""
    await asyncio.sleep(0.05)
