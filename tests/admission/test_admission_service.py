"""Permits over real links: they live exactly as long as their requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from baton.config import Config, Qos
from baton.errors import DeadlineError, OverloadedError, UnavailableError
from baton.requests import Priority
from baton.rpc.link import Link, LinkCall
from baton.rpc.links import ADMISSION_LINK
from baton.v1 import admission_link_pb2 as frames
from baton.v1 import types_pb2
from services.admission.app import AdmissionApp
from services.admission.policy import DECODE_SLOTS
from tests.support.control_plane import ControlPlane, control_plane
from tests.support.mesh import admission_state
from tests.support.waiting import eventually

AdmissionLink = Link[Any, Any]
Call = LinkCall[Any, Any]


@asynccontextmanager
async def admission(
    redis_url: str, config: Config | None = None, workers: int = 1
) -> AsyncIterator[tuple[ControlPlane, AdmissionApp, AdmissionLink]]:
    async with control_plane(redis_url) as plane:
        for number in range(workers):
            await plane.decode(f"decode-{number}")
        app = await plane.admission(config)
        link: AdmissionLink = Link(ADMISSION_LINK, app.address)
        plane.stack.push_async_callback(link.close)
        yield plane, app, link


def ask(link: AdmissionLink, priority: Priority = Priority.NORMAL, **more: Any) -> Call:
    start = frames.AdmissionStart(
        request_id="r", priority=types_pb2.Priority.ValueType(priority), prompt_tokens=8
    )
    return link.open(frames.AdmissionCommand(start=start), **more)


async def kind_of_next(call: Call) -> str:
    event = await anext(call)
    return str(event.WhichOneof("event"))


async def granted(link: AdmissionLink, count: int) -> list[Call]:
    calls = [ask(link) for _ in range(count)]
    assert [await kind_of_next(call) for call in calls] == ["granted"] * count
    return calls


async def test_cancelled_and_broken_links_release_all_permits(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        calls = await granted(link, 50)
        assert (await admission_state(app.address)).prefill_permits == 50
        for call in calls[:25]:
            await call.cancel()
        assert (await admission_state(app.address)).prefill_permits == 25
        await link.close()
        await eventually(lambda: app.desk.is_empty)


async def test_prefill_done_moves_the_permit_to_decode(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        (call,) = await granted(link, 1)
        call.send(frames.AdmissionCommand(prefill_done=frames.AdmissionPrefillDone()))
        await eventually(lambda: app.desk.load.decode_permits == 1)
        state = await admission_state(app.address)
        assert (state.prefill_permits, state.decode_permits) == (0, 1)
        await call.cancel()
        assert app.desk.is_empty


async def test_who_waits_is_told_and_served_by_priority_then_arrival(redis_url: str) -> None:
    async with admission(redis_url) as (_, _app, link):
        running = await granted(link, DECODE_SLOTS)
        order: list[str] = []

        async def wait(name: str, call: Call) -> None:
            assert await kind_of_next(call) == "granted"
            order.append(name)

        async with asyncio.TaskGroup() as tasks:
            for name, priority in (
                ("normal 1", Priority.NORMAL),
                ("low", Priority.LOW),
                ("normal 2", Priority.NORMAL),
                ("high", Priority.HIGH),
            ):
                call = ask(link, priority)
                assert await kind_of_next(call) == "queued"
                tasks.create_task(wait(name, call))
            for done in range(4):
                await running[done].cancel()
                await eventually(lambda done=done: len(order) == done + 1)  # type: ignore[misc]
        assert order == ["high", "normal 1", "normal 2", "low"]


async def test_cancel_and_deadline_leave_the_queue_at_once(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        await granted(link, DECODE_SLOTS)
        cancelled, late = ask(link), ask(link, timeout_s=0.05)
        assert [await kind_of_next(call) for call in (cancelled, late)] == ["queued"] * 2
        await cancelled.cancel()
        with pytest.raises(DeadlineError):
            await anext(late)
        await eventually(lambda: app.desk.load.waiting_ahead == 0)
        assert app.desk.load.prefill_permits == DECODE_SLOTS


async def test_full_queue_rejects_with_reason_and_retry_time(redis_url: str) -> None:
    config = Config(qos=Qos(max_queue_length=1))
    async with admission(redis_url, config) as (_, app, link):
        await granted(link, DECODE_SLOTS)
        waiting = ask(link)
        assert await kind_of_next(waiting) == "queued"
        with pytest.raises(OverloadedError) as caught:
            await anext(ask(link))
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_s is not None

        urgent = ask(link, Priority.HIGH)
        assert await kind_of_next(urgent) == "queued"
        with pytest.raises(OverloadedError) as displaced:
            await anext(waiting)
        assert displaced.value.reason == "QUEUE_FULL"
        assert app.desk.load.waiting_ahead == 1


async def test_unattainable_target_rejects_with_reason_and_retry_time(redis_url: str) -> None:
    config = Config(qos=Qos(low_priority_threshold_ms=1e-6))
    async with admission(redis_url, config) as (_, app, link):
        done = frames.AdmissionCommand(prefill_done=frames.AdmissionPrefillDone())
        for _ in range(12):
            (call,) = await granted(link, 1)
            call.send(frames.AdmissionCommand.FromString(done.SerializeToString()))
            await eventually(lambda: app.desk.load.decode_permits == 1)
            await call.cancel()
        assert app.desk.load.prefill_s > 0
        await granted(link, 3)
        with pytest.raises(OverloadedError) as caught:
            await anext(ask(link, Priority.LOW))
        assert caught.value.reason == "TTFT_UNATTAINABLE"
        assert caught.value.retry_after_s is not None
        assert "retry in" in caught.value.message


async def test_sixteen_requests_at_once_on_one_worker_are_all_admitted(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        done = frames.AdmissionCommand(
            prefill_done=frames.AdmissionPrefillDone()
        ).SerializeToString()
        for _ in range(3):
            calls = await granted(link, 16)
            for number, call in enumerate(calls):
                call.send(frames.AdmissionCommand.FromString(done))
                await eventually(lambda n=number: app.desk.load.decode_permits == n + 1)  # type: ignore[misc]
            await asyncio.gather(*(call.cancel() for call in calls))
        assert app.desk.is_empty


async def test_without_a_decode_worker_nobody_enters(redis_url: str) -> None:
    async with admission(redis_url, workers=0) as (plane, app, link):
        with pytest.raises(UnavailableError) as caught:
            await anext(ask(link))
        assert caught.value.reason == "NO_WORKER"
        assert caught.value.retry_after_s is not None
        await plane.decode("decode-late")
        await eventually(lambda: app.desk.load.decode_workers == 1)
        await granted(link, 1)


async def test_worker_that_joins_serves_those_who_wait(redis_url: str) -> None:
    async with admission(redis_url) as (plane, _, link):
        await granted(link, DECODE_SLOTS)
        waiting = ask(link)
        assert await kind_of_next(waiting) == "queued"
        await plane.decode("decode-late")
        assert await kind_of_next(waiting) == "granted"


async def test_draining_worker_gives_no_capacity(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        app = await plane.admission()
        await worker.publish(draining=True)
        await eventually(lambda: app.desk.load.decode_workers == 0)
