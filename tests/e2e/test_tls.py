"""The whole mesh over TLS: it serves as ever, and whoever has no certificate of it gets nothing."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.local import probes
from baton.local.certs import write_certificates
from baton.rpc.identity import ENV_TLS_DIR
from baton.rpc.server import ServiceServer
from baton.state.connect import connect
from baton.state.records import WorkerStats, new_incarnation
from baton.state.registry import Registration
from baton.v1 import decode_pb2, decode_pb2_grpc, types_pb2
from tests.e2e.conftest import Mesh, Reference, started_mesh
from tests.support.mesh import Client, greedy
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e


class Impostor(decode_pb2_grpc.DecodeServiceServicer):
    """A decode worker that somebody with access to Redis, but without a certificate, runs."""

    def __init__(self) -> None:
        self.called = 0

    async def Link(self, request_iterator: object, context: object) -> None:
        self.called += 1

    async def GetState(self, request: object, context: object) -> object:
        self.called += 1
        return decode_pb2.DecodeServiceGetStateResponse()


@pytest.fixture
async def secured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> AsyncIterator[Mesh]:
    write_certificates(tmp_path / "tls")
    monkeypatch.setenv(ENV_TLS_DIR, str(tmp_path / "tls"))
    async with started_mesh(tmp_path / "run", reference) as mesh:
        yield mesh


async def test_a_mesh_over_tls_serves_members_only(
    secured: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(secured.router)
    prompt = secured.prompt(700)
    answer = await client.generate(input_ids=prompt, sampling_params=greedy(12))
    assert answer.placement.prefill_mode == types_pb2.PREFILL_MODE_REMOTE
    assert answer.output_ids == secured.reference(prompt, 12)

    for role in ("prefill", "decode"):
        (address,) = secured.addresses(role)
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=5
                )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    impostor = Impostor()
    with monkeypatch.context() as patched:
        write_certificates(tmp_path / "foreign")
        patched.setenv(ENV_TLS_DIR, str(tmp_path / "foreign"))
        server = ServiceServer("127.0.0.1", 0, ["baton.v1.DecodeService"])
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(impostor, server.grpc)
        await server.start()
        await server.set_ready(True)
    redis = connect(secured.stack.redis_url)
    real = await probes.find_record(redis, "decode-0", 0.0)
    assert real is not None
    record = replace(
        real, worker_id="decode-9", incarnation=new_incarnation(), address=server.address
    )
    async with Registration(redis, record) as registration:
        await registration.publish_stats(
            WorkerStats(real.started_at_s, kv_blocks_total=9999, kv_blocks_free=9999)
        )

        async def is_listed() -> bool:
            workers = (await client.fleet()).workers
            return "decode-9" in {worker.worker_id for worker in workers}

        await eventually(is_listed)
        for length in (40, 60, 80, 120, 160, 200):
            question = secured.prompt(length)
            answer = await client.generate(input_ids=question, sampling_params=greedy(8))
            assert answer.output_ids == secured.reference(question, 8)
            assert answer.placement.decode_worker_id == "decode-0"
    assert impostor.called == 0
    await redis.aclose()
    await server.drain(0)
    await client.close()
