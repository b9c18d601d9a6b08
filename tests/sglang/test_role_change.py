"""SGLang keeps its role for life: the local stack starts the worker again in the other one."""

from pathlib import Path

import pytest

from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.v1 import types_pb2
from tests.sglang.conftest import CONFIG, START_TIMEOUT_S, prompt
from tests.support.mesh import Client, greedy
from tests.support.reference import Reference

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


async def test_decode_worker_becomes_the_prefill_worker(
    reference: Reference, tmp_path: Path
) -> None:
    options = StackOptions(
        config_path=CONFIG,
        prefill=1,
        decode=2,
        router_port=0,
        run_dir=tmp_path,
        environ={
            "BATON_SPLIT_POLICY__POLICY": "weighted",
            "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
        },
        ready_timeout_s=START_TIMEOUT_S,
    )
    ids = prompt(400, seed=900)

    async with Stack(options) as stack:
        moved = await stack.move_worker("decode-1")
        await stack.remove_worker("prefill-0")
        client = Client(stack.router_address)
        answer = await client.generate(input_ids=ids, sampling_params=greedy(8))
        await client.close()
        seconds = stack.member(moved).move_s

    assert moved == "prefill-1"
    assert answer.output_ids == reference.greedy(ids, 8)
    assert answer.placement.prefill_mode == types_pb2.PREFILL_MODE_REMOTE
    assert answer.placement.prefill_worker_id == moved
    assert seconds is not None
    print(f"decode to prefill in {seconds:.1f} s")
