"""Greedy output is token-identical to transformers, whatever the way it is computed."""

import itertools

import pytest

from tests.engine.conftest import MODELS, collect, prompt_of, request_of, together

LENGTHS = (1, 3, 4, 13, 29)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("token_budget", [7, 512])
async def test_batched_local_generation_is_identical(
    tiny_model, fleet, family: str, token_budget: int
) -> None:
    model = tiny_model(family)
    requests = [request_of(prompt_of(length, length), 12) for length in LENGTHS]
    async with fleet() as engines:
        engine = await engines.add(model, token_budget=token_budget)
        answers = await together(*(collect(engine.generate(request)) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == model.greedy(request.input_ids, 12)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("token_budget", [7, 512])
async def test_lone_generation_with_prefix_hit_is_identical(
    tiny_model, fleet, family: str, token_budget: int
) -> None:
    model = tiny_model(family)
    prompt = prompt_of(22)
    async with fleet() as engines:
        engine = await engines.add(model, token_budget=token_budget)
        cold = await collect(engine.generate(request_of(prompt, 10)))
        warm = await collect(engine.generate(request_of(prompt, 10)))
        longer = (*prompt, *cold.tokens, 5, 6, 7)
        further = await collect(engine.generate(request_of(longer, 10)))
    assert cold.tokens == warm.tokens == model.greedy(prompt, 10)
    assert further.tokens == model.greedy(longer, 10)
    cached = [answer.prefilled.cached_tokens for answer in (cold, warm, further)]
    assert cached == [0, 20, 28]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("token_budget", "prefill_hit", "decode_hit"),
    list(itertools.product([7, 512], [False, True], [False, True])),
)
async def test_remote_prefill_is_identical(
    tiny_model, fleet, family: str, token_budget: int, prefill_hit: bool, decode_hit: bool
) -> None:
    model = tiny_model(family)
    shared = prompt_of(16, 3)
    requests = [request_of(shared + prompt_of(n, n), 10) for n in (1, 4, 9)]
    async with fleet() as engines:
        prefill = await engines.add(model, token_budget=token_budget)
        decode = await engines.add(model, token_budget=token_budget)
        for engine, is_warm in ((prefill, prefill_hit), (decode, decode_hit)):
            if is_warm:
                await collect(engine.generate(request_of((*shared, 2), 1)))
        answers = await together(
            *(engines.generate_remotely(prefill, decode, request) for request in requests)
        )
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == model.greedy(request.input_ids, 10)
        sent = answer.prefilled.receipt.blocks
        assert sent == -(-len(request.input_ids) // 4) - (4 if decode_hit else 0)
        assert prefill_hit <= (answer.prefilled.cached_tokens >= 16)


async def test_preempted_generations_are_identical(llama, fleet) -> None:
    requests = [request_of(prompt_of(9, seed), 30) for seed in range(5)]
    block_bytes = 2 * 2 * 4 * 2 * 8 * 4
    async with fleet() as engines:
        engine = await engines.add(llama, kv_memory_bytes=24 * block_bytes)
        answers = await together(*(collect(engine.generate(request)) for request in requests))
        assert engine.stats().preemptions > 0
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == llama.greedy(request.input_ids, 30)


async def test_remote_and_local_run_in_one_batch_without_mixing(llama, fleet) -> None:
    async with fleet() as engines:
        prefill = await engines.add(llama, token_budget=8)
        decode = await engines.add(llama, token_budget=8, reuse_prefix=False)
        local = [request_of(prompt_of(15 + n, n), 14) for n in range(4)]
        remote = [request_of(prompt_of(15 + n, 10 + n), 14) for n in range(4)]
        answers = await together(
            *(collect(decode.generate(request)) for request in local),
            *(engines.generate_remotely(prefill, decode, request) for request in remote),
        )
        assert decode.stats().kv_blocks_cached == 0
    for request, answer in zip(local + remote, answers, strict=True):
        assert answer.tokens == llama.greedy(request.input_ids, 14)


async def test_reservation_without_prefill_is_computed_locally(llama, fleet) -> None:
    request = request_of(prompt_of(11), 6)
    async with fleet() as engines:
        engine = await engines.add(llama)
        answer = await collect(engine.generate(request, engine.reserve(request)))
    assert answer.tokens == llama.greedy(request.input_ids, 6)


async def test_bfloat16_serves_and_names_its_layout(llama, fleet) -> None:
    async with fleet() as engines:
        engine = await engines.add(llama, dtype="bfloat16", token_budget=7)
        answer = await collect(engine.generate(request_of(prompt_of(20), 8)))
        assert "bfloat16" in engine.capabilities.kv_layout
    assert answer.tokens[0] == llama.greedy(prompt_of(20), 1)[0]
    assert len(answer.tokens) == 8


BLOCK_BYTES = 2 * 2 * 4 * 2 * 8 * 4


async def test_prefix_restored_from_host_memory_is_identical(llama, fleet) -> None:
    prompt = prompt_of(40)
    others = [request_of(prompt_of(60, seed), 4) for seed in range(1, 4)]
    async with fleet() as engines:
        engine = await engines.add(
            llama, kv_memory_bytes=24 * BLOCK_BYTES, host_memory_bytes=64 * BLOCK_BYTES
        )
        cold = await collect(engine.generate(request_of(prompt, 12)))
        for other in others:
            await collect(engine.generate(other))
        assert engine.stats().kv_host_used > 0
        warm = await collect(engine.generate(request_of(prompt, 12)))
    assert warm.prefilled.cached_tokens == 36
    assert cold.tokens == warm.tokens == llama.greedy(prompt, 12)


async def test_preempted_generations_resume_from_host_memory(llama, fleet) -> None:
    requests = [request_of(prompt_of(9, seed), 30) for seed in range(5)]
    async with fleet() as engines:
        engine = await engines.add(
            llama, kv_memory_bytes=24 * BLOCK_BYTES, host_memory_bytes=64 * BLOCK_BYTES
        )
        answers = await together(*(collect(engine.generate(request)) for request in requests))
        assert engine.stats().preemptions > 0
        assert engine._up().pool.host_counts().restored > 0
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == llama.greedy(request.input_ids, 30)


async def test_random_sampling_survives_preemption(llama, fleet) -> None:
    requests = [request_of(prompt_of(9, seed), 30, temperature=0.8, seed=seed) for seed in range(5)]
    async with fleet() as engines:
        roomy = await engines.add(llama)
        tight = await engines.add(
            llama, kv_memory_bytes=24 * BLOCK_BYTES, host_memory_bytes=8 * BLOCK_BYTES
        )
        plain = [await collect(roomy.generate(request)) for request in requests]
        pressed = await together(*(collect(tight.generate(request)) for request in requests))
        assert tight.stats().preemptions > 0
    assert [it.tokens for it in pressed] == [it.tokens for it in plain]
