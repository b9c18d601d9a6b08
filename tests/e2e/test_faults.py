"""Processes are killed for real; answers stay right and nothing stays behind."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from baton.telemetry import names
from baton.v1 import types_pb2
from tests.e2e.conftest import Mesh, Reference, started_mesh
from tests.support.mesh import Answer, Client, greedy, worker_stats
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
async def faulty(
    tmp_path_factory: pytest.TempPathFactory, reference: Reference
) -> AsyncIterator[Mesh]:
    """A mesh of its own with two decode workers, since the test breaks it."""
    run_dir = tmp_path_factory.mktemp("faults")
    async with started_mesh(run_dir, reference, prefill=1, decode=2) as mesh:
        yield mesh


async def test_killed_prefill_worker_mid_transfer_ends_with_local_prefill(faulty: Mesh) -> None:
    client = Client(faulty.router)
    prompt = faulty.prompt(6000)
    trace_id = "11111111111111111111111111111111"
    running = asyncio.create_task(
        client.generate(
            input_ids=prompt,
            sampling_params=greedy(12),
            metadata=[("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")],
        )
    )

    async def is_transferring() -> bool:
        leases = [
            (await worker_stats(address, "decode")).kv_leases
            for address in faulty.addresses("decode")
        ]
        (prefill,) = faulty.addresses("prefill")
        return any(leases) and (await worker_stats(prefill, "prefill")).prefilling_requests > 0

    await eventually(is_transferring, timeout_s=10)
    await asyncio.sleep(0.15)  # some chunks are written, others are not
    faulty.kill("prefill-0", signal.SIGKILL)

    answer = await running
    assert answer.output_ids == faulty.reference(prompt, 12)
    assert answer.placement.prefill_mode == types_pb2.PREFILL_MODE_LOCAL
    spans = await faulty.trace(bytes.fromhex(trace_id), names.SPAN_REQUEST, names.SPAN_DECODE)
    (decode,) = [span for span in spans if span.name == names.SPAN_DECODE]
    attributes = {item.key: item.value for item in decode.attributes}
    attempts = attributes[names.ATTR_FAILED_ATTEMPTS].array_value.values
    assert any("prefill-0" in attempt.string_value for attempt in attempts)
    await eventually(faulty.is_clean, timeout_s=20)
    await client.close()


async def test_killed_decode_worker_mid_stream_continues_with_identical_tokens(
    faulty: Mesh,
) -> None:
    client = Client(faulty.router)
    prompt = faulty.prompt(500)
    killed: list[str] = []

    async def kill_after_some(answer: Answer) -> None:
        if killed or len(answer.output_ids) < 10:
            return
        for name, address in faulty.workers("decode"):
            if (await worker_stats(address, "decode")).decoding_requests:
                faulty.kill(name, signal.SIGKILL)
                killed.append(name)

    answer = await client.generate(
        input_ids=prompt, sampling_params=greedy(300), on_chunk=kill_after_some
    )
    assert killed
    assert answer.output_ids == faulty.reference(prompt, 300)
    assert answer.placement.migrations == 1
    assert answer.placement.decode_worker_id not in killed
    assert answer.complete.usage.completion_tokens == 300
    await eventually(faulty.is_clean, timeout_s=20)
    await client.close()


async def test_seeded_sampling_continues_with_identical_tokens_after_a_migration(
    faulty: Mesh,
) -> None:
    client = Client(faulty.router)
    params = types_pb2.SamplingParams(max_tokens=200, temperature=1.0, seed=7, ignore_eos=True)
    prompt = faulty.prompt(64)
    undisturbed = await client.generate(input_ids=prompt, sampling_params=params)
    killed: list[str] = []

    async def kill_after_some(answer: Answer) -> None:
        if killed or len(answer.output_ids) < 10:
            return
        for name, address in faulty.workers("decode"):
            if (await worker_stats(address, "decode")).decoding_requests:
                faulty.kill(name, signal.SIGKILL)
                killed.append(name)

    answer = await client.generate(
        input_ids=prompt, sampling_params=params, on_chunk=kill_after_some
    )
    assert killed
    assert answer.output_ids == undisturbed.output_ids
    await client.close()
