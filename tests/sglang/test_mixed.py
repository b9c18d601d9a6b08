"""An aggregated worker beside a pair: chosen by a real router, answering the same."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from baton.local.probes import free_port
from baton.v1 import types_pb2
from tests.sglang.conftest import CONFIG, Fleet, prompt
from tests.support.mesh import Client, greedy
from tests.support.reference import Reference
from tests.support.waiting import eventually
from tests.support.worker_fleet import read

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alone(fleet: Fleet) -> AsyncIterator[None]:
    if "decode-0" not in fleet.workers:
        await fleet.start("decode-0", "decode")
    worker = await fleet.start("alone-0", "decode", "--aggregated")
    yield
    await fleet.stop(worker)
    del fleet.workers["alone-0"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(fleet: Fleet, alone: None) -> AsyncIterator[Client]:
    """A router that goes by the chapter's rule: 256 tokens make a long prompt."""
    port = free_port("127.0.0.1")
    environ = {
        **os.environ,
        "REDIS_URL": fleet.redis_url,
        "BATON_SPLIT_POLICY__POLICY": "weighted",
        "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.router.main", "--config", str(CONFIG), "--port", str(port)),
        env=environ,
    )
    client = Client(f"127.0.0.1:{port}")

    async def sees_all() -> bool:
        if process.returncode is not None:
            raise AssertionError("the router ended")
        try:
            return len((await client.fleet()).workers) == 3
        except Exception:  # it is starting
            return False

    await eventually(sees_all, timeout_s=120)
    yield client
    await client.close()
    process.terminate()
    await process.wait()


async def test_aggregated_worker_computes_alone_whatever_it_is_offered(
    fleet: Fleet, reference: Reference, alone: None
) -> None:
    ids = prompt(400, seed=400)

    answer = await read(fleet.ask(ids, max_tokens=8, decode="alone-0"))

    assert answer.tokens == reference.greedy(ids, 8)
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    assert answer.prefilled.reason == "ONLY_LOCAL"
    assert answer.prefilled.prefill_compute_s > 0


@pytest.mark.parametrize(("length", "decode", "mode"), [
    (40, "alone-0", types_pb2.PREFILL_MODE_LOCAL),
    (400, "decode-0", types_pb2.PREFILL_MODE_REMOTE),
])  # fmt: skip
async def test_router_sends_short_prompts_alone_and_long_ones_to_the_pair(
    router: Client, reference: Reference, length: int, decode: str, mode: Any
) -> None:
    ids = prompt(length, seed=410 + length)

    answer = await router.generate(input_ids=ids, sampling_params=greedy(8))

    assert answer.output_ids == reference.greedy(ids, 8)
    assert answer.placement.decode_worker_id == decode
    assert answer.placement.prefill_mode == mode
