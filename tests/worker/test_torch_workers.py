"""Workers on the embedded engine and the default model: the tokens are those of one engine."""

import asyncio

import pytest
import torch

from baton.engine.torch import TorchEngine, TorchEngineOptions
from baton.models import DEFAULT_MODEL, model_dir
from baton.v1 import types_pb2
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, Worker, WorkerFleet, read

PROMPT = tuple(5 + 7 * n % 900 for n in range(400))
TOKENS = 12


def engine() -> TorchEngine:
    options = TorchEngineOptions(
        str(model_dir(DEFAULT_MODEL)), kv_memory_bytes=32 << 20, device="cpu", token_budget=64
    )
    return TorchEngine(options)


class Pair:
    """A prefill and a decode worker on real models."""

    def __init__(self, fleet: WorkerFleet, prefill: Worker, decode: Worker) -> None:
        self.fleet = fleet
        self.prefill = prefill
        self.decode = decode

    async def ask(self, prompt: tuple[int, ...], remote: bool = True) -> Answer:
        candidates = [self.prefill.candidate()] if remote else []
        return await read(self.fleet.ask(self.decode, prompt, candidates, TOKENS))

    async def assert_clean(self) -> None:
        for worker in (self.prefill, self.decode):
            await eventually(worker.is_clean, timeout_s=10)
            worker.engine.audit()


@pytest.fixture
async def pair(fleet: WorkerFleet) -> Pair:
    torch.set_num_threads(1)
    prefill = await fleet.prefill("p0", engine())
    decode = await fleet.decode("d0", engine())
    await eventually(lambda: decode.service.connected_prefill_workers() == ["p0"])
    return Pair(fleet, prefill, decode)


async def test_remote_prefill_gives_the_tokens_of_local_prefill(pair: Pair) -> None:
    remote = await pair.ask(PROMPT)
    other = await pair.fleet.decode("d1", engine())
    local = await read(pair.fleet.ask(other, PROMPT, [], TOKENS))
    assert remote.prefilled.mode == types_pb2.PREFILL_MODE_REMOTE
    assert local.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    assert remote.tokens == local.tokens
    assert len(remote.tokens) == TOKENS
    assert remote.prefilled.prefill_compute_s > 0
    again = await pair.ask(PROMPT + PROMPT)
    fresh = await read(pair.fleet.ask(other, PROMPT + PROMPT, [], TOKENS))
    assert again.prefilled.local_cached_tokens >= 384
    assert again.tokens == fresh.tokens
    await pair.assert_clean()


async def test_next_turn_on_another_worker_pulls_what_the_last_one_left(pair: Pair) -> None:
    first = await pair.ask(PROMPT, remote=False)
    turn = (*PROMPT, *first.tokens, 17, 18, 19)
    undisturbed = await pair.ask(turn, remote=False)
    held = pair.decode.engine.cached_hashes()
    other = await pair.fleet.decode("d1", engine())
    # Prompts that take long to compute, so that pulling any prefix is worth it.
    other.learn_prefill(seconds_per_token=1e-2)

    holders = [pair.decode.holder(16 * len(held))]
    pulled = await read(pair.fleet.ask(other, turn, [], TOKENS, holders=holders))

    assert pulled.prefilled.pulled_from == "d0"
    assert pulled.prefilled.pulled_tokens >= 400
    assert pulled.prefilled.local_cached_tokens == pulled.prefilled.pulled_tokens
    assert pulled.tokens == undisturbed.tokens
    await pair.assert_clean()
    await eventually(other.is_clean, timeout_s=10)


async def test_prefill_worker_lost_mid_transfer_changes_no_token(pair: Pair) -> None:
    pair.fleet.fabric.faults_towards(pair.decode.incarnation).delay_s = 0.05
    running = asyncio.create_task(pair.ask(PROMPT))
    await eventually(lambda: pair.prefill.engine.stats().prefilling_requests == 1)
    await pair.prefill.cable.cut()
    answer = await running
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    assert list(answer.prefilled.failed_attempts) == ["p0: PEER_LOST"]
    undisturbed = await pair.ask(PROMPT, remote=False)
    assert answer.tokens == undisturbed.tokens
    await pair.assert_clean()
