"""A worker is asked to change its role."""

import asyncio

import grpc
import pytest

from baton.rpc.channels import open_channel
from baton.state.records import WorkerRole
from baton.v1 import worker_pb2, worker_pb2_grpc
from tests.support.fake_engine import FakeEngine
from tests.support.worker_fleet import Worker, WorkerFleet


async def ask(worker: Worker, role: str, worker_id: str) -> None:
    async with open_channel(worker.address) as channel:
        request = worker_pb2.ChangeRoleRequest(role=role, worker_id=worker_id)
        await worker_pb2_grpc.WorkerServiceStub(channel).ChangeRole(request, timeout=5)


async def test_worker_drains_and_says_what_it_becomes(fleet: WorkerFleet) -> None:
    worker = await fleet.decode("decode-0", FakeEngine())
    await ask(worker, "prefill", "prefill-7")
    async with asyncio.timeout(10):
        await worker.task
    life = worker.host.next_life
    assert life is not None
    assert (life.role, life.worker_id) == (WorkerRole.PREFILL, "prefill-7")


@pytest.mark.parametrize(
    ("role", "worker_id", "code"),
    [
        ("decode", "decode-1", grpc.StatusCode.FAILED_PRECONDITION),
        ("router", "router-1", grpc.StatusCode.INVALID_ARGUMENT),
        ("prefill", "", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_is_refused(
    fleet: WorkerFleet, role: str, worker_id: str, code: grpc.StatusCode
) -> None:
    worker = await fleet.decode("decode-0", FakeEngine())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(worker, role, worker_id)
    assert refused.value.code() is code
    assert worker.host.next_life is None


async def test_engine_with_a_role_of_its_own_says_so(fleet: WorkerFleet) -> None:
    sglang = fleet.config.engine.model_copy(update={"kind": "sglang"})
    fleet.config = fleet.config.model_copy(update={"engine": sglang})
    worker = await fleet.decode("decode-0", FakeEngine())
    with pytest.raises(grpc.aio.AioRpcError, match="restart the worker in the other"):
        await ask(worker, "prefill", "prefill-1")
