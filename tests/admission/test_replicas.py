"""Two admission services enforce one limit; one that dies frees exactly its part."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from baton.config import Config, Qos
from baton.errors import OverloadedError
from baton.rpc.link import Link
from baton.rpc.links import ADMISSION_LINK
from baton.state import keys
from baton.state.connect import connect
from baton.state.shared_quota import give_back, reserve
from baton.v1 import admission_link_pb2 as frames
from services.admission.app import AdmissionApp
from services.admission.policy import DECODE_SLOTS
from tests.support.control_plane import control_plane
from tests.support.waiting import eventually

DONE = frames.AdmissionCommand(prefill_done=frames.AdmissionPrefillDone()).SerializeToString()


class Asker:
    """Asks one service for permits, keeps them and reports their prompts computed."""

    def __init__(self, app: AdmissionApp) -> None:
        self.app = app
        self.link: Link[Any, Any] = Link(ADMISSION_LINK, app.address)
        self.granted = 0
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, count: int) -> None:
        self.tasks += [asyncio.create_task(self._hold()) for _ in range(count)]

    async def _hold(self) -> None:
        start = frames.AdmissionStart(request_id="r", prompt_tokens=8)
        async with self.link.open(frames.AdmissionCommand(start=start)) as call:
            async for event in call:
                if event.WhichOneof("event") == "granted":
                    self.granted += 1
                    call.send(frames.AdmissionCommand.FromString(DONE))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.link.close()


@asynccontextmanager
async def two_services(
    redis_url: str, config: Config | None = None
) -> AsyncIterator[tuple[Asker, Asker]]:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        askers = [Asker(await plane.admission(config, f"admission-{n}")) for n in range(2)]
        for asker in askers:
            plane.stack.push_async_callback(asker.close)
        first, second = askers
        await eventually(lambda: None not in (quota(first), quota(second)))
        yield first, second


def quota(asker: Asker) -> int | None:
    return asker.app.desk.door.ledger.quota


async def test_two_services_never_grant_more_than_the_pool_has(redis_url: str) -> None:
    async with two_services(redis_url) as (first, second):
        first.ask(50)
        second.ask(50)
        await eventually(lambda: first.granted + second.granted == DECODE_SLOTS)
        assert first.app.desk.door.ledger.permits + second.app.desk.door.ledger.permits == 64
        assert first.granted > 0
        assert second.granted > 0
        waiting = first.app.desk.load.waiting_ahead + second.app.desk.load.waiting_ahead
        assert waiting == 100 - DECODE_SLOTS


async def test_a_service_that_dies_frees_exactly_its_permits(redis_url: str) -> None:
    async with two_services(redis_url) as (first, second):
        first.ask(40)
        await eventually(lambda: first.granted == 40)
        second.ask(DECODE_SLOTS)
        await eventually(lambda: second.granted == DECODE_SLOTS - 40)
        await first.close()
        await eventually(lambda: second.granted == DECODE_SLOTS)
        assert first.app.desk.is_empty


async def test_tenants_are_held_to_one_limit_over_both(redis_url: str) -> None:
    config = Config(qos=Qos.model_validate({"tenants": {"default": {"concurrent": 3}}}))
    async with two_services(redis_url, config) as (first, second):
        first.ask(3)
        await eventually(lambda: first.granted == 3)
        await eventually(lambda: second.app.desk.door.tenants.elsewhere == {"": 3})
        start = frames.AdmissionStart(request_id="r", prompt_tokens=8)
        with pytest.raises(OverloadedError) as caught:
            await anext(second.link.open(frames.AdmissionCommand(start=start)))
        assert caught.value.reason == "TENANT_LIMIT"


async def test_reservations_add_up_to_the_limit_and_run_out(redis_url: str) -> None:
    redis = connect(redis_url)
    await redis.flushall()
    try:
        assert (await reserve(redis, "a", 10, 8, 0, b"from a")).part == 8
        second = await reserve(redis, "b", 10, 8, 0, b"from b")
        assert (second.part, second.reports) == (2, (b"from a",))
        assert (await reserve(redis, "a", 10, 3, 3, b"")).part == 3
        assert (await reserve(redis, "b", 10, 8, 2, b"")).part == 7
        await give_back(redis, "a")
        assert (await reserve(redis, "b", 10, 20, 2, b"")).part == 10
        assert await redis.pttl(keys.admission()) > 0
    finally:
        await redis.aclose()
