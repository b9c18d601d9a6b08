"""A pair and an aggregated worker behind a real router: who is chosen, and what traces tell."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from baton.ports import free_port
from baton.telemetry import names
from baton.v1 import types_pb2
from tests.sglang.conftest import CONFIG, Fleet, prompt
from tests.support.mesh import Client, greedy, seconds
from tests.support.reference import Reference
from tests.support.waiting import eventually
from tests.support.worker_fleet import read

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(fleet: Fleet) -> AsyncIterator[Client]:
    """A router that goes by the chapter's rule: 256 tokens make a long prompt."""
    port = free_port("127.0.0.1")
    environ = {
        **fleet.environ,
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
    fleet: Fleet, reference: Reference
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


async def test_trace_of_a_pair_splits_the_time_to_its_first_token(
    fleet: Fleet, router: Client
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = await router.generate(
        input_ids=prompt(600, seed=430),
        sampling_params=greedy(12),
        metadata=[("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")],
    )
    stages = {names.SPAN_PREFILL, names.SPAN_KV_TRANSFER, names.SPAN_DECODE}
    computing = {names.SPAN_PREFILL_QUEUE, names.SPAN_PREFILL_COMPUTE}

    def spans() -> dict[str, Any]:
        return {span.name: span for span in fleet.otlp.trace(bytes.fromhex(trace_id))}

    await eventually(lambda: {names.SPAN_REQUEST, *stages, *computing} <= spans().keys())
    request = spans()[names.SPAN_REQUEST]
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert {spans()[name].parent_span_id for name in stages} == {request.span_id}
    assert {spans()[name].parent_span_id for name in computing} == {
        spans()[names.SPAN_PREFILL].span_id
    }

    attributes = {item.key: item.value.double_value for item in request.attributes}
    parts = {k: v for k, v in attributes.items() if k.startswith(names.TTFT_PART_PREFIX)}
    assert len(parts) == 8
    assert sum(parts.values()) == pytest.approx(attributes[names.ATTR_TTFT_S], abs=1e-6)
    timing = seconds(answer.complete.timing)
    assert timing["prefill_compute"] > 0
    assert timing["kv_transfer"] > 0
    told_s = _duration_s(spans()[names.SPAN_PREFILL_COMPUTE])
    assert timing["prefill_compute"] == pytest.approx(told_s, rel=0.01)


def _duration_s(span: Any) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
