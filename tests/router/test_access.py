"""With a key file, a caller is who its key says, and sees nothing of anybody else's."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton.api_keys import ENV_API_KEY, OPERATOR, KeyFile, add_key
from baton.client import Prompt, RequestOptions, RouterClient
from baton.errors import UnauthenticatedError
from baton.local.certs import write_certificates
from baton.requests import SamplingParams
from baton.rpc.identity import ENV_TLS_DIR
from baton.v1 import router_pb2
from services.router.access import Access, Caller
from tests.support.control_plane import control_plane
from tests.support.mesh import greedy

PROMPT = list(range(300, 364))


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


async def test_without_a_known_key_nothing_is_answered(redis_url: str, key_file: Path) -> None:
    add_key(key_file, "acme")
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await plane.router(access=Access(KeyFile(key_file)))
        client = await plane.client(router)
        for metadata in ([], bearer("baton-made-up"), [("authorization", "Basic eDp5")]):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.generate(
                    input_ids=PROMPT, sampling_params=greedy(2), metadata=metadata
                )
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.ListModels(router_pb2.ListModelsRequest())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_tenant_cannot_speak_for_another_nor_share_its_prefix_cache(
    redis_url: str, key_file: Path
) -> None:
    acme, other = add_key(key_file, "acme"), add_key(key_file, "other")
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        router = await plane.router(access=Access(KeyFile(key_file)))
        client = await plane.client(router)
        for key in (acme, other):
            await client.generate(
                input_ids=PROMPT,
                tenant="acme",
                cache_salt="mine",
                sampling_params=greedy(2),
                metadata=bearer(key),
            )
        salts = [start.cache_salt for start in worker.starts]
        assert salts == ["acme/mine", "other/mine"]


async def test_only_operators_see_the_fleet_and_requests_of_others(
    redis_url: str, key_file: Path
) -> None:
    acme, operator = add_key(key_file, "acme"), add_key(key_file, OPERATOR)
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await plane.router(access=Access(KeyFile(key_file)))
        client = await plane.client(router)
        asks: list[Any] = [
            (client.stub.GetFleet, router_pb2.GetFleetRequest()),
            (client.stub.ListRequests, router_pb2.ListRequestsRequest()),
            (client.stub.Explain, router_pb2.ExplainRequest(request_id="r")),
            (client.stub.Route, router_pb2.RouteRequest()),
        ]
        for method, message in asks:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(message, metadata=bearer(acme))
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await asks[0][0](asks[0][1], metadata=bearer(operator))).workers


async def test_keys_come_and_go_without_a_restart(redis_url: str, key_file: Path) -> None:
    old = add_key(key_file, "acme")
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await plane.router(access=Access(KeyFile(key_file)))
        client = await plane.client(router)

        async def ask(key: str) -> None:
            await client.generate(input_ids=PROMPT, sampling_params=greedy(2), metadata=bearer(key))

        await ask(old)
        await asyncio.to_thread(key_file.unlink)
        new = add_key(key_file, "acme-2")
        await ask(new)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(old)
        await asyncio.to_thread(key_file.write_text, "not: a list")
        await ask(new)


async def test_the_client_library_sends_its_key_over_tls(
    redis_url: str, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add_key(key_file, "acme")
    write_certificates(tmp_path / "tls")
    monkeypatch.setenv(ENV_TLS_DIR, str(tmp_path / "tls"))
    sampling = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        router = await plane.router(access=Access(KeyFile(key_file)))
        monkeypatch.setenv(ENV_API_KEY, key)
        prompt, options = Prompt(input_ids=tuple(PROMPT)), RequestOptions(sampling=sampling)
        async with RouterClient(router.address) as client:
            assert [part async for part in client.generate(prompt, options)]
        assert worker.starts[0].cache_salt == "acme/"
        monkeypatch.delenv(ENV_API_KEY)
        async with RouterClient(router.address) as client:
            with pytest.raises(UnauthenticatedError):
                await client.models()


def test_what_a_message_says_of_itself_is_not_believed() -> None:
    request = router_pb2.GenerateRequest(tenant="victim", cache_salt="s")
    Caller("me").stamp(request)
    assert (request.tenant, request.cache_salt) == ("me", "me/s")
    Caller(OPERATOR, is_operator=True).stamp(request)
    assert request.tenant == "me"
