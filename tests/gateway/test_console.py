"""The console in a real browser, in front of a router and scripted workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from playwright.async_api import Page, expect

from baton.api_keys import ApiKeys, digest_of
from baton.errors import OverloadedError
from baton.state.background import running
from baton.state.records import WorkerRecord, WorkerRole
from baton.v1 import types_pb2
from tests.support.browser import browsing, needs_chromium, shot_path
from tests.support.control_plane import Call, ControlPlane, FakeDecodeWorker, control_plane
from tests.support.gateway import running_gateway
from tests.support.mesh import Client, greedy

pytestmark = needs_chromium


class FakePrefillWorker(FakeDecodeWorker):
    """Is there, but nothing asks it: what it would send is the decode worker's script."""

    def record(self) -> WorkerRecord:
        return replace(super().record(), role=WorkerRole.PREFILL)


async def script(worker: FakeDecodeWorker, call: Call) -> None:
    """Long prompts are said to come from a prefill worker; some are shed."""
    request = call.start.start
    if request.request_id.startswith("shed"):
        raise OverloadedError("full", reason="QUEUE_FULL", retry_after_s=1)
    if len(request.input_ids) < 100:
        await worker.generate(call)
        return
    await worker.send_prefilled(
        call, mode=types_pb2.PREFILL_MODE_REMOTE, reason="LONG_PREFILL",
        prefill_worker_id=request.prefill_candidates[0].worker_id, cached_tokens=32,
        decode_admit_s=0.0004, prefill_queue_s=0.0008, prefill_compute_s=0.002,
        kv_transfer_s=0.0007,
        receipt=types_pb2.KvReceipt(bytes=len(request.input_ids) * 4096, transfer_s=0.002),
    )  # fmt: skip
    for _ in range(request.sampling_params.max_tokens):
        await worker.take_token()
        await worker.send_token(call)
    await worker.send_finished(call, types_pb2.FINISH_REASON_LENGTH)


def publishing(worker: FakeDecodeWorker, **figures: Any) -> Any:
    """Tells a worker's figures again and again, as living workers do."""

    async def publish() -> None:
        while True:
            await worker.publish(**figures)
            await asyncio.sleep(0.3)

    return running(publish())


@asynccontextmanager
async def shown(
    redis_url: str, *, prefill: int = 2, decode: int = 2, keys: ApiKeys | None = None, **look: Any
) -> AsyncIterator[tuple[Page, str, Client, ControlPlane]]:
    async with control_plane(redis_url) as plane:
        for at in range(decode):
            worker = await plane.decode(f"decode-{at}", script)
            await plane.stack.enter_async_context(publishing(worker,
                decoding_requests=3 * at, queued_requests=at, busy_share=0.2 + 0.5 * at,
                kv_blocks_total=1000, kv_blocks_owned=310 * at, kv_blocks_cached=420,
                kv_blocks_free=580 - 310 * at, kv_leases=at,
            ))  # fmt: skip
        for at in range(prefill):
            fake = FakePrefillWorker(f"prefill-{at}", plane.model)
            await plane.stack.enter_async_context(fake.running(plane.redis))
            await plane.stack.enter_async_context(publishing(fake,
                queued_requests=at, prefilling_requests=1, busy_share=0.83, kv_blocks_total=1000,
                kv_blocks_owned=120, kv_blocks_cached=300, kv_blocks_free=580,
            ))  # fmt: skip
        await plane.admission()
        router = await plane.router()
        client = await plane.client(router)
        async with running_gateway(router.address, keys) as url, browsing(**look) as page:
            yield page, url, client, plane


async def traffic(client: Client) -> None:
    """Sends requests of every kind that the page tells apart."""
    for at in range(6):
        await client.generate(
            request_id=f"req-long-{at}", input_ids=[7 + at] * (200 + 150 * at),
            sampling_params=greedy(8 + at), tenant="acme",
            priority=(types_pb2.PRIORITY_HIGH, types_pb2.PRIORITY_NORMAL)[at % 2],
        )  # fmt: skip
        await client.generate(
            request_id=f"req-short-{at}", input_ids=[9] * 20, sampling_params=greedy(4),
            priority=types_pb2.PRIORITY_LOW,
        )  # fmt: skip


async def shoot(page: Page, name: str) -> None:
    path = shot_path(name)
    if path is not None:
        await page.screenshot(path=path, full_page=True)


async def test_the_page_shows_fleet_numbers_split_and_requests(redis_url: str) -> None:
    async with shown(redis_url) as (page, url, client, _):
        await traffic(client)
        await page.goto(f"{url}/console/")
        await expect(page.locator("#rows tr")).to_have_count(12)
        await expect(page.locator(".worker")).to_have_count(4)
        await expect(page.locator(".links path:not(.idle)").first).to_be_attached()
        await expect(page.locator("#live-text")).to_have_text("live")
        await expect(page.locator("#numbers .number").first).to_contain_text("%")
        await expect(page.locator("#split .split i").first).to_be_attached()
        await shoot(page, "console-light")


async def test_keys_select_explain_and_close(redis_url: str) -> None:
    async with shown(redis_url, scheme="dark") as (page, url, client, _):
        await traffic(client)
        await page.goto(f"{url}/console/")
        await expect(page.locator("#rows tr")).to_have_count(12)
        await shoot(page, "console-dark")
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        await expect(page.locator('#rows tr[aria-selected="true"]')).to_contain_text("req-long-5")
        await page.keyboard.press("Enter")
        await expect(page.locator("#detail")).to_contain_text("policy latency")
        assert page.url.endswith("#/request/req-long-5")
        await shoot(page, "console-detail")
        await page.keyboard.press("Escape")
        await expect(page.locator("#detail")).to_be_hidden()
        await page.keyboard.press("?")
        await expect(page.locator("#keys")).to_be_visible()


async def test_search_finds_by_id_and_says_when_nobody_knows_it(redis_url: str) -> None:
    async with shown(redis_url) as (page, url, client, _):
        await traffic(client)
        await page.goto(f"{url}/console/")
        await expect(page.locator("#rows tr")).to_have_count(12)
        await page.keyboard.press("/")
        await page.keyboard.type("long-3")
        await page.keyboard.press("Enter")
        await expect(page.locator("#detail h2")).to_have_text("req-long-3")
        await page.keyboard.press("Escape")
        await page.fill("#query", "nobody")
        await page.press("#query", "Enter")
        await expect(page.locator("#detail")).to_contain_text("knows no request")


async def test_an_empty_mesh_says_what_to_do(redis_url: str) -> None:
    async with shown(redis_url, prefill=0, decode=0) as (page, url, _, _):
        await page.goto(f"{url}/console/")
        await expect(page.locator("#no-requests")).to_be_visible()
        await expect(page.locator("#map")).to_contain_text("No decode worker")
        await shoot(page, "console-empty")


async def test_failures_show_in_the_table_and_small_screens_fit(redis_url: str) -> None:
    async with shown(redis_url, width=390, height=844) as (page, url, client, _):
        await traffic(client)
        await page.goto(f"{url}/console/")
        await expect(page.locator("#rows tr")).to_have_count(12)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390
        await shoot(page, "console-small")


async def test_a_lost_gateway_is_said_and_the_last_picture_stays(redis_url: str) -> None:
    async with shown(redis_url) as (page, _, _, plane):
        router = await plane.router(name="router-1")
        await traffic(await plane.client(router))
        async with running_gateway(router.address) as url:
            await page.goto(f"{url}/console/")
            await expect(page.locator("#rows tr")).to_have_count(12)
        await expect(page.locator("#banner")).to_be_visible(timeout=10_000)
        await expect(page.locator("#rows tr")).to_have_count(12)
        await shoot(page, "console-lost")


async def test_many_workers_are_shown_small(redis_url: str) -> None:
    async with shown(redis_url, prefill=6, decode=12) as (page, url, _, _):
        await page.goto(f"{url}/console/")
        await expect(page.locator(".map.many .worker")).to_have_count(18)
        await shoot(page, "console-many")


async def test_with_keys_the_page_asks_for_one(redis_url: str) -> None:
    keys = ApiKeys(((digest_of("baton-o"), "operator"),))
    async with shown(redis_url, keys=keys) as (page, url, _, _):
        await page.goto(f"{url}/console/")
        await expect(page.locator("#door")).to_be_visible()
        await shoot(page, "console-door")
        await page.fill("#key", "baton-o")
        await page.press("#key", "Enter")
        await expect(page.locator("#live-text")).to_have_text("live")
