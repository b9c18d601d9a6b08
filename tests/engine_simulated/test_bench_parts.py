"""The benchmarks' own parts: what they send, replay and count is what they say."""

import asyncio
import json
from pathlib import Path

import pytest

from baton.state.prefix_index import PrefixIndex
from baton.v1 import router_pb2
from bench.decisions import measure_decisions
from bench.drive import LoadPlan, Outcome, drive, percentiles_ms
from bench.fleet import Pace
from bench.http_load import load_http
from bench.http_worker import FakeWorker
from bench.index import bytes_per_entry, replay
from bench.index_work import make_work, read_chains
from bench.prompts import PromptPlan
from bench.router import figures


def test_request_bytes_are_the_message() -> None:
    plan = PromptPlan(tokens=300, output_tokens=16, shared_tokens=200, groups=4, seed=3)
    message = router_pb2.GenerateRequest.FromString(plan.request(9))
    assert list(message.input_ids) == plan.ids(9).tolist()
    assert len(message.input_ids) == 300
    assert message.sampling_params.max_tokens == 16
    assert message.sampling_params.ignore_eos


def test_prompts_share_what_they_should_and_no_more() -> None:
    plan = PromptPlan(tokens=64, output_tokens=1, shared_tokens=32, groups=2)
    ids = [plan.ids(number).tolist() for number in range(5000)]
    assert ids[0][:32] == ids[2][:32] != ids[1][:32]
    assert len({tuple(it[32:35]) for it in ids}) == 5000
    assert min(map(min, ids)) > 0
    assert max(map(max, ids)) < 4096


def chains_of(directory: Path) -> list[list[int]]:
    rows = [[0, 1, 2], [0, 1, 3], [0, 4], [0, 1, 2, 5]]
    lines = [json.dumps({"input_length": 512 * len(it) - 1, "hash_ids": it}) for it in rows]
    trace = directory / "trace.jsonl"
    trace.write_text("\n".join(lines))
    return list(read_chains(trace, 10, 128))


def test_trace_becomes_chains_of_full_blocks(tmp_path: Path) -> None:
    chains = chains_of(tmp_path)
    assert [len(chain) for chain in chains] == [11, 11, 7, 15]
    assert chains[0][:8] == chains[1][:8]
    assert chains[0][8] != chains[1][8]
    assert chains[3][:11] == chains[0]


def test_replayed_index_holds_what_the_workers_hold(tmp_path: Path) -> None:
    work = make_work(chains_of(tmp_path), workers=2, capacity=12)
    index = PrefixIndex()
    for operation in work.operations:
        index.store(f"w{operation.worker}", operation.stored)
        index.remove(f"w{operation.worker}", operation.removed)
    for worker, held in enumerate(work.held):
        assert len(held) <= 15
        assert all(f"w{worker}" in index.match([block], 0.0) for block in held)
    assert replay(work).lookup_us > 0
    assert bytes_per_entry(work) > 8


async def test_open_loop_keeps_its_rate_whatever_the_target_does() -> None:
    async def slow(number: int, outcome: Outcome) -> None:
        await asyncio.sleep(0.05)
        outcome.tokens, outcome.messages = 2, 1
        outcome.error = "" if number % 2 else "BAD"

    result = await drive(slow, LoadPlan(seconds=0.8, rate_per_s=200, seed=1))
    offered = result.completed + result.errors["BAD"]
    assert offered / result.seconds == pytest.approx(200, rel=0.35)
    assert result.tokens == pytest.approx(2 * result.messages)


async def test_streams_of_fake_http_workers_are_counted_token_by_token() -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: FakeWorker(0.001), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    prompts = PromptPlan(tokens=64, output_tokens=5)
    result = await load_http("127.0.0.1", port, prompts, LoadPlan(0.4, concurrency=2))
    server.close()
    assert result.errors == {}
    assert result.completed > 5
    assert 4.0 < result.tokens / result.completed < 6.0


def test_nothing_measured_is_null_and_never_absent() -> None:
    assert set(figures({}, {}).values()) == {None}
    cell = {"watched_cpu_s": 1.0, "completed": 1000, "tokens": 16_000, "requests_per_s": 500.0}
    found = figures({("baton", "short"): [cell]}, {"p50": 1.0})
    assert found["cpu_us_per_request_short"] == pytest.approx(1000)
    assert found["ratio_cpu_request_vs_sglang_router"] is None


def test_decisions_are_timed_with_the_real_parts() -> None:
    times = measure_decisions(decisions=5, prompt_tokens=256, workers=8)
    assert 0 < times.decision["p50"] <= times.decision["p99"]


def test_pace_replaces_the_declared_costs() -> None:
    costs = Pace(step_s=0.01, prefill_token_s=0.0).costs()
    assert costs.step_s(50, 100_000) == pytest.approx(0.01, rel=1e-3)
    assert costs.prefill_s(4096, 0) < 1e-3
    assert Pace().costs().step_s(1, 1) > 0


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles_ms([0.001, 0.002, 0.003]) == {"p50": 2.0, "p90": 3.0, "p99": 3.0}
    assert percentiles_ms([]) == {}
