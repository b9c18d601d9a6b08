"""Many requests of one client on one link to the router, through baton.client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from baton.client import Chunk, Completion, Prompt, RequestOptions, RouterClient
from baton.errors import DeadlineError, InvalidRequestError
from baton.requests import FinishReason, SamplingParams
from tests.support.control_plane import Call, FakeDecodeWorker, Script, control_plane, token_at
from tests.support.mesh import admission_state
from tests.support.waiting import eventually


@asynccontextmanager
async def linked(
    redis_url: str, script: Script | None = None
) -> AsyncIterator[tuple[FakeDecodeWorker, RouterClient]]:
    """Yields a decode worker and a client of the router before it."""
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0", script)
        await plane.admission()
        router = await plane.router()
        await eventually(lambda: bool(router.fleet.worker("decode-0")))
        async with RouterClient(router.address) as client:
            yield worker, client


def options(max_tokens: int = 6, **more: object) -> RequestOptions:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return RequestOptions(sampling=sampling, **more)  # type: ignore[arg-type]


async def ask(client: RouterClient, length: int, asked: RequestOptions) -> list[int]:
    ids: list[int] = []
    async for part in client.generate(Prompt(input_ids=(5,) * length), asked):
        if isinstance(part, Chunk):
            ids += part.output_ids
        else:
            assert isinstance(part, Completion)
            assert part.completion_tokens == len(ids)
            assert part.finish_reason is FinishReason.LENGTH
            assert part.timing.ttft_s > 0
    return ids


async def test_many_requests_on_one_link_do_not_mix(redis_url: str) -> None:
    async with linked(redis_url) as (_, client):
        answers = await asyncio.gather(*(ask(client, n, options()) for n in range(1, 40)))
    assert answers == [[token_at(n + i) for i in range(6)] for n in range(1, 40)]


async def test_refusal_of_one_request_harms_no_other(redis_url: str) -> None:
    async with linked(redis_url) as (_, client):
        with pytest.raises(InvalidRequestError) as caught:
            await ask(client, 1, options(max_tokens=0))
        assert caught.value.field == "sampling_params.max_tokens"
        with pytest.raises(InvalidRequestError, match="longer than a message"):
            await ask(client, 3_000_000, options())
        assert len(await ask(client, 1, options())) == 6


async def test_leaving_an_answer_stops_it_everywhere(redis_url: str) -> None:
    async with linked(redis_url) as (worker, client):
        worker.allow(3)
        stream = client.generate(Prompt(input_ids=(5,)), options(max_tokens=50))
        await anext(stream)
        await stream.aclose()
        await eventually(lambda: worker.cancelled == 1 and worker.active == 0)


async def test_deadline_of_a_request_on_a_link(redis_url: str) -> None:
    async with linked(redis_url) as (worker, client):
        worker.allow(0)
        with pytest.raises(DeadlineError):
            await ask(client, 1, options(timeout_s=0.2))
        await eventually(lambda: worker.active == 0)
        worker.allow(None)
        assert len(await ask(client, 1, options())) == 6


async def test_reader_who_stalls_stops_its_own_answer_only(redis_url: str) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        if len(call.start.start.input_ids) > 1:
            await worker.generate(call)
            return
        await worker.send_prefilled(call)
        while True:
            worker.sent += 1
            await worker.send_tokens(call, [token_at(worker.sent)] * 50)

    async with linked(redis_url, script) as (worker, client):
        stalled = client.generate(Prompt(input_ids=(5,)), options(max_tokens=8000))
        await anext(stalled)
        before = -1
        while before != worker.sent:  # until flow control stopped the worker's sending
            before = worker.sent
            await asyncio.sleep(0.1)
        assert (
            await asyncio.gather(*(ask(client, 3, options(40)) for _ in range(4)))
            == [[token_at(3 + i) for i in range(40)]] * 4
        )
        await stalled.aclose()
        await eventually(lambda: worker.active == 0)


async def test_ticket_takes_a_client_to_the_decode_worker_and_holds_the_permit(
    redis_url: str,
) -> None:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        admission = await plane.admission()
        router = await plane.router()
        await eventually(lambda: bool(router.fleet.worker("decode-0")))

        async def permits() -> int:
            state = await admission_state(admission.address)
            return int(state.prefill_permits + state.decode_permits)

        async with RouterClient(router.address) as client:
            asked = options(max_tokens=6, request_id="direct")
            ids: list[int] = []
            async for chunk in client.direct(Prompt(input_ids=(5,) * 3), asked):
                ids += chunk.output_ids
                assert await permits() == 1
                assert router.credits.total == 1
            assert ids == [token_at(3 + i) for i in range(6)]
            await eventually(lambda: router.credits.total == 0)
            assert (await client.explain("direct")).decisions[0].decode.worker_id == "decode-0"
            worker.allow(1)
            stream = client.direct(Prompt(input_ids=(5,)), asked)
            await anext(stream)
            await stream.aclose()
            await eventually(lambda: worker.active == 0 and router.credits.total == 0)
        async with asyncio.timeout(5):
            while await permits():
                await asyncio.sleep(0.01)
