"""The engine's accounting, aborts, failures and refusals."""

import asyncio
import json
import shutil
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton.blocks import block_hashes, root_hash
from baton.engine.base import BlocksStored
from baton.engine.torch import TorchEngine, TorchEngineOptions
from baton.engine.torch.runner import StepRunner
from baton.errors import (
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    StartupError,
    TransferError,
    UnavailableError,
)
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from tests.engine.conftest import BLOCK, SHAPE, collect, prompt_of, request_of, until

BLOCK_BYTES = 2 * 2 * BLOCK * 2 * 8 * 4


@pytest.mark.parametrize("events_read", [0, 1, 2, 7])
async def test_closing_a_generation_at_any_moment_frees_its_blocks(
    llama, fleet, events_read: int
) -> None:
    async with fleet() as engines:
        engine = await engines.add(llama, token_budget=5)
        async with aclosing(engine.generate(request_of(prompt_of(30), 200))) as events:
            for _ in range(events_read):
                await anext(events)
        assert engine.stats().kv_blocks_owned == 0
        assert engine.stats().decoding_requests == 0


async def test_cancelling_tasks_at_any_moment_frees_their_blocks(llama, fleet) -> None:
    async with fleet() as engines:
        prefill = await engines.add(llama, token_budget=5)
        decode = await engines.add(llama, token_budget=5)
        request = request_of(prompt_of(40), 20)
        engines.fabric.faults_towards("worker-1").delay_s = 0.002
        for turns in (0, 1, 2, 3, 5, 8, 13, 30, 80):
            reservation = decode.reserve(request)
            task = asyncio.create_task(prefill.prefill(request, reservation.destination))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert prefill.stats().kv_blocks_owned == 0
            decode.release(reservation)
            assert decode.stats().kv_blocks_owned == 0


async def test_failed_transfer_fails_the_prefill_and_frees(llama, fleet) -> None:
    async with fleet() as engines:
        prefill, decode = await engines.add(llama), await engines.add(llama)
        engines.fabric.faults_towards("worker-1").failing_writes = 1
        reservation = decode.reserve(request_of(prompt_of(20)))
        with pytest.raises(TransferError):
            await prefill.prefill(request_of(prompt_of(20)), reservation.destination)
        assert prefill.stats().kv_blocks_owned == 0
        decode.release(reservation)


async def test_reservation_is_pinned_until_released_once(llama, fleet) -> None:
    request = request_of(prompt_of(10))
    async with fleet() as engines:
        engine = await engines.add(llama)
        reservation = engine.reserve(request)
        assert reservation.destination.cached_tokens == 0
        assert len(reservation.destination.block_ids) == 3
        assert engine.stats().kv_leases == 1
        engine.release(reservation)
        with pytest.raises(PreconditionError):
            engine.release(reservation)


async def test_full_pool_refuses_reservations_and_waits_for_local_work(llama, fleet) -> None:
    async with fleet() as engines:
        engine = await engines.add(llama, kv_memory_bytes=8 * BLOCK_BYTES)
        reservation = engine.reserve(request_of(prompt_of(27)))
        with pytest.raises(OverloadedError) as refusal:
            engine.reserve(request_of(prompt_of(9, 1)))
        assert refusal.value.reason == "KV_POOL_FULL"
        waiting = asyncio.create_task(collect(engine.generate(request_of(prompt_of(9, 2), 4))))
        await until(lambda: engine.stats().queued_requests == 1)
        assert engine.stats().queued_tokens == 9
        engine.release(reservation)
        assert (await waiting).tokens == llama.greedy(prompt_of(9, 2), 4)


async def test_impossible_requests_are_refused(llama, fleet) -> None:
    async with fleet() as engines:
        engine = await engines.add(llama, kv_memory_bytes=8 * BLOCK_BYTES)
        for prompt in ((), prompt_of(32), (3, 64), (-1,)):
            with pytest.raises(InvalidRequestError):
                engine.reserve(request_of(prompt))
            with pytest.raises(InvalidRequestError):
                await collect(engine.generate(request_of(prompt)))


async def test_destination_of_another_prompt_is_refused(llama, fleet) -> None:
    async with fleet() as engines:
        prefill, decode = await engines.add(llama), await engines.add(llama)
        reservation = decode.reserve(request_of(prompt_of(10)))
        with pytest.raises(PreconditionError):
            await prefill.prefill(request_of(prompt_of(20)), reservation.destination)
        decode.release(reservation)


async def test_prompt_and_answer_enter_the_cache_and_its_events(llama, fleet) -> None:
    prompt = prompt_of(10)
    async with fleet() as engines:
        engine = await engines.add(llama)
        answer = await collect(engine.generate(request_of(prompt, 8)))
        # The KV of the last token is never computed.
        computed = [*prompt, *answer.tokens[:-1]]
        root = root_hash(llama.directory.name)
        hashes = block_hashes(computed, BLOCK, root)
        await until(lambda: engine.stats().kv_blocks_owned == 0)
        events = list(engine.take_kv_events())
        assert all(isinstance(event, BlocksStored) for event in events)
        assert [each for event in events for each in event.hashes] == hashes
        assert events[0].parent == root
        assert set(engine.cached_hashes()) == set(hashes)
        assert engine.match(request_of((*computed, 5))) == len(hashes) * BLOCK


async def test_failing_step_fails_its_requests_only(
    llama, fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failures = StepRunner.run, iter([True])

    def run_or_fail(self: StepRunner, chunks: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("out of memory")
        return run(self, chunks)

    async with fleet() as engines:
        engine = await engines.add(llama)
        monkeypatch.setattr(StepRunner, "run", run_or_fail)
        with pytest.raises(InternalError, match="out of memory"):
            await collect(engine.generate(request_of(prompt_of(9), 4)))
        assert engine.stats().kv_blocks_owned == 0
        answer = await collect(engine.generate(request_of(prompt_of(9), 4)))
    assert answer.tokens == llama.greedy(prompt_of(9), 4)


async def test_dead_engine_thread_fails_everything(
    llama, fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: StepRunner, chunks: Any) -> Any:
        raise AssertionError("a bug")

    async with fleet() as engines:
        engine = await engines.add(llama)
        monkeypatch.setattr(StepRunner, "run", die)
        with pytest.raises(UnavailableError):
            await collect(engine.generate(request_of(prompt_of(9), 4)))
        with pytest.raises(UnavailableError):
            await collect(engine.generate(request_of(prompt_of(9), 4)))


def _options(directory: Path) -> TorchEngineOptions:
    return TorchEngineOptions(
        str(directory), kv_memory_bytes=1 << 18, block_size=BLOCK, device="cpu"
    )


async def test_stopping_ends_running_generations(llama) -> None:
    engine = TorchEngine(_options(llama.directory))
    await engine.start(InProcessTransport("only", InProcessFabric()))
    async with aclosing(engine.generate(request_of(prompt_of(9), 240))) as events:
        await anext(events)
        reservation = engine.reserve(request_of(prompt_of(5)))
        await engine.stop()
        with pytest.raises(UnavailableError):
            async for _ in events:
                pass
    with pytest.raises(PreconditionError):
        engine.release(reservation)
    await engine.stop()


async def test_stopping_gives_back_a_prefills_blocks_before_the_transport_ends(llama) -> None:
    owned_at_end: list[int] = []

    class Transport(InProcessTransport):
        async def stop(self) -> None:
            owned_at_end.append(prefill.stats().kv_blocks_owned)
            await super().stop()

    fabric = InProcessFabric()
    prefill, decode = (
        TorchEngine(replace(_options(llama.directory), token_budget=4)) for _ in range(2)
    )
    writer, reader = Transport("writer", fabric), InProcessTransport("reader", fabric)
    await prefill.start(writer)
    await decode.start(reader)
    await writer.connect("reader", reader.metadata(), prefill.capabilities.kv_layout)
    request = request_of(prompt_of(200))
    reservation = decode.reserve(request)
    faults = fabric.faults_towards("reader")
    faults.hanging_writes = 1
    task = asyncio.create_task(prefill.prefill(request, reservation.destination))
    await until(lambda: prefill.stats().kv_blocks_owned > 0 and not prefill.stats().queued_tokens)
    stopping = asyncio.create_task(prefill.stop())
    await asyncio.sleep(0.02)
    # Who waited for it gives up while a write is still posted, and later that write ends.
    task.cancel()
    await asyncio.sleep(0.02)
    faults.release_hanging()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stopping
    assert owned_at_end == [0]
    decode.release(reservation)
    await decode.stop()


async def test_stats_show_a_busy_engine(llama, fleet) -> None:
    async with fleet() as engines:
        engine = await engines.add(llama)
        async with aclosing(engine.generate(request_of(prompt_of(9), 240))) as events:
            for _ in range(20):
                await anext(events)
            stats = engine.stats()
        assert stats.decoding_requests == 1
        assert (stats.kv_leases, stats.kv_blocks_owned > 0) == (0, True)
        assert 0.0 < stats.busy_share <= 1.0
        total = stats.kv_blocks_free + stats.kv_blocks_cached + stats.kv_blocks_owned
        assert total == stats.kv_blocks_total


async def test_capabilities_describe_the_pool(llama, fleet) -> None:
    async with fleet() as engines:
        capabilities = (await engines.add(llama)).capabilities
    assert capabilities.model == llama.directory.name
    assert capabilities.context_length == SHAPE["max_position_embeddings"]
    assert capabilities.kv_bytes_per_token * BLOCK == BLOCK_BYTES
    assert capabilities.kv_blocks == (1 << 18) // BLOCK_BYTES


def edited(llama, tmp_path, **changes: object):
    """Returns a copy of the model's directory with changes to its config."""
    directory = tmp_path / "model"
    shutil.copytree(llama.directory, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


async def refusal_of(directory, **options: Any) -> str:
    settings = {"kv_memory_bytes": 1 << 18, "block_size": BLOCK, "device": "cpu", **options}
    engine = TorchEngine(TorchEngineOptions(str(directory), **settings))
    with pytest.raises(StartupError) as refusal:
        await engine.start(InProcessTransport("refused", InProcessFabric()))
    return str(refusal.value)


async def test_models_that_cannot_be_served_are_refused_by_name(llama, tmp_path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    directory = edited(llama, tmp_path, rope_parameters=rope)
    assert "dynamic rotary embedding" in await refusal_of(directory)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors", "no *.safetensors"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("config.json", "config.json is missing"),
    ],
)
async def test_missing_files_are_named(llama, tmp_path, name: str, reason: str) -> None:
    directory = edited(llama, tmp_path)
    (directory / name).unlink()
    assert reason in await refusal_of(directory)


async def test_missing_weights_are_named(llama, tmp_path) -> None:
    assert "weights are missing" in await refusal_of(edited(llama, tmp_path, num_hidden_layers=3))


async def test_too_little_memory_is_refused(llama) -> None:
    assert "at least two" in await refusal_of(llama.directory, kv_memory_bytes=BLOCK_BYTES)


async def test_foreign_architectures_are_refused(tmp_path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

    from tests.engine.conftest import write_tokenizer

    models = {
        "mamba": MambaForCausalLM(
            MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
        ),
        "gemma": Gemma2ForCausalLM(Gemma2Config(**SHAPE)),
    }
    reasons = {}
    for name, module in models.items():
        module.save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name)
        reasons[name] = await refusal_of(tmp_path / name)
    assert "cannot be served" in reasons["mamba"]
    assert "softcap" in reasons["gemma"]
