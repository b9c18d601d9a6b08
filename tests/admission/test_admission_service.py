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
from services.admission import door
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


def ask(
    link: AdmissionLink,
    priority: Priority = Priority.NORMAL,
    *,
    has_started: bool = False,
    **more: Any,
) -> Call:
    start = frames.AdmissionStart(
        request_id="r",
        priority=types_pb2.Priority.ValueType(priority),
        prompt_tokens=8,
        has_started=has_started,
    )
    return link.open(frames.AdmissionCommand(start=start), **more)


async def kind_of_next(call: Call) -> str:
    event = await anext(call)
    return str(event.WhichOneof("event"))


DONE = frames.AdmissionCommand(prefill_done=frames.AdmissionPrefillDone()).SerializeToString()


def tell_prefilled(call: Call) -> None:
    call.send(frames.AdmissionCommand.FromString(DONE))


async def granted(link: AdmissionLink, app: AdmissionApp, count: int) -> list[Call]:
    """Holds permits of requests that generate: prompts that compute would keep others waiting."""
    calls = []
    for _ in range(count):
        call = ask(link)
        assert await kind_of_next(call) == "granted"
        tell_prefilled(call)
        calls.append(call)
    await eventually(lambda: app.desk.load.decode_permits == count)
    return calls


async def test_cancelled_and_broken_links_release_all_permits(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        calls = await granted(link, app, 50)
        assert (await admission_state(app.address)).decode_permits == 50
        for call in calls[:25]:
            await call.cancel()
        assert (await admission_state(app.address)).decode_permits == 25
        await link.close()
        await eventually(lambda: app.desk.is_empty)


async def test_prefill_done_moves_the_permit_to_decode(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        call = ask(link)
        assert await kind_of_next(call) == "granted"
        state = await admission_state(app.address)
        assert (state.prefill_permits, state.decode_permits) == (1, 0)
        tell_prefilled(call)
        await eventually(lambda: app.desk.load.decode_permits == 1)
        assert app.desk.load.prefill_permits == 0
        await call.cancel()
        assert app.desk.is_empty


async def test_length_of_an_answer_arrives_though_the_permit_ends_with_it(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        for _ in range(40):
            (call,) = await granted(link, app, 1)
            finished = frames.AdmissionFinished(output_tokens=7)
            call.send(frames.AdmissionCommand(finished=finished))
            await call.cancel()
        assert app.desk.door.ledger.lengths.of(Priority.NORMAL).mean == 7


async def test_who_waits_is_told_and_served_by_priority_then_arrival(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        running = await granted(link, app, DECODE_SLOTS)
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
        await granted(link, app, DECODE_SLOTS)
        cancelled, late = ask(link), ask(link, timeout_s=0.05)
        assert [await kind_of_next(call) for call in (cancelled, late)] == ["queued"] * 2
        await cancelled.cancel()
        with pytest.raises(DeadlineError):
            await anext(late)
        await eventually(lambda: app.desk.load.waiting_ahead == 0)
        assert app.desk.load.decode_permits == DECODE_SLOTS


async def test_full_queue_of_a_class_rejects_with_reason_and_retry_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long the machine stands still, nobody comes too late and the bound does not move:
    # what fits into ten minutes is far more than may wait.
    monkeypatch.setattr(door, "MOST_BOUND", 40)
    config = Config(qos=Qos(ttft_slo_ms=600_000))
    async with admission(redis_url, config) as (_, app, link):
        await granted(link, app, DECODE_SLOTS)
        bound = app.desk.door.bound(app.desk.load)
        waiting = [ask(link) for _ in range(bound)]
        assert [await kind_of_next(call) for call in waiting] == ["queued"] * bound
        with pytest.raises(OverloadedError) as caught:
            await anext(ask(link))
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_s is not None
        assert "retry in" in caught.value.message
        assert await kind_of_next(ask(link, Priority.HIGH)) == "queued"


async def test_tenant_over_its_limit_is_told_so(redis_url: str) -> None:
    config = Config(qos=Qos.model_validate({"tenants": {"default": {"concurrent": 2}}}))
    async with admission(redis_url, config) as (_, app, link):
        calls = await granted(link, app, 2)
        with pytest.raises(OverloadedError) as caught:
            await anext(ask(link))
        assert caught.value.reason == "TENANT_LIMIT"
        assert caught.value.retry_after_s is not None
        await calls[0].cancel()
        assert await kind_of_next(ask(link)) == "granted"


async def test_who_waited_past_its_target_is_turned_away(redis_url: str) -> None:
    config = Config(qos=Qos(ttft_slo_ms=200))
    async with admission(redis_url, config) as (_, app, link):
        await granted(link, app, DECODE_SLOTS)
        waiting, urgent = ask(link), ask(link, Priority.HIGH)
        assert [await kind_of_next(call) for call in (waiting, urgent)] == ["queued"] * 2
        with pytest.raises(OverloadedError) as caught:
            await anext(waiting)
        assert caught.value.reason == "TTFT_UNATTAINABLE"
        assert app.desk.load.waiting_ahead == 1


async def test_sixteen_requests_at_once_on_one_worker_are_all_admitted(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        for _ in range(3):
            calls = [ask(link) for _ in range(16)]
            kinds = [await kind_of_next(call) for call in calls]
            assert set(kinds) <= {"granted", "queued"}
            for number, call in enumerate(calls):
                if kinds[number] == "queued":
                    assert await kind_of_next(call) == "granted"
                tell_prefilled(call)
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
        assert await kind_of_next(ask(link)) == "granted"


async def test_worker_that_joins_serves_those_who_wait(redis_url: str) -> None:
    async with admission(redis_url) as (plane, app, link):
        await granted(link, app, DECODE_SLOTS)
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


async def test_grant_says_what_may_start_ahead_and_who_did_is_counted(redis_url: str) -> None:
    async with admission(redis_url, workers=2) as (_, app, link):
        first = await anext(ask(link))
        assert first.granted.ahead == 2
        started = ask(link, has_started=True)
        assert await kind_of_next(started) == "granted"
        assert app.desk.door.ledger.permits == 2
        await started.cancel()
        assert app.desk.door.ledger.permits == 1


async def test_who_started_ahead_is_let_in_however_full_it_became(redis_url: str) -> None:
    async with admission(redis_url) as (_, app, link):
        await granted(link, app, DECODE_SLOTS)
        assert await kind_of_next(ask(link)) == "queued"
        late = await anext(ask(link, has_started=True))
        assert late.WhichOneof("event") == "granted"
        assert late.granted.ahead == 0
        assert app.desk.door.ledger.permits == DECODE_SLOTS + 1
