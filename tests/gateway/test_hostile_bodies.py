"""Bodies that are meant to hurt get a plain refusal, and the next request is served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from baton.rpc.channels import MAX_MESSAGE_BYTES
from services.gateway import api
from tests.support.control_plane import control_plane
from tests.support.gateway import running_gateway

PATH = "/v1/completions"
REQUEST = {"model": "baton-tiny", "prompt": "Once", "max_tokens": 2}


@asynccontextmanager
async def gateway(redis_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        await plane.admission()
        router = await plane.router()
        async with (
            running_gateway(router.address, None) as url,
            httpx2.AsyncClient(base_url=url, timeout=30) as client,
        ):
            yield client


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"prompt": ' + b"[" * 100_000, "invalid_request"),
        (b'{"prompt": "' + b"x" * MAX_MESSAGE_BYTES + b'"}', "request_too_large"),
        (b'{"prompt": "\xff\xfe"}', "invalid_request"),
        (b'{"max_tokens": 1' + b"0" * 5000 + b"}", "invalid_request"),
    ],
    ids=["nested", "large", "not text", "long number"],
)
async def test_it_is_refused_and_the_next_is_served(redis_url: str, body: bytes, code: str) -> None:
    async with gateway(redis_url) as client:
        refused = await client.post(PATH, content=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == code
        assert (await client.post(PATH, json=REQUEST)).status_code == 200


async def test_a_body_that_trickles_in_is_given_up(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 0.2)
    async with gateway(redis_url) as client:
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        head = f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100\r\n\r\n"
        writer.write(head.encode() + b'{"model": ')
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"request_timeout" in answer
        assert (await client.post(PATH, json=REQUEST)).status_code == 200
