"""Sampling: what is drawn, from what, and that a draw depends on seed and position alone."""

import pytest
import torch

from baton.engine.torch.sampling import Draw, choose, uniform
from baton.requests import SamplingParams
from tests.engine.conftest import collect, prompt_of, request_of, together


def draws_of(count: int, **sampling: object) -> list[Draw]:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return [Draw(params, 5, position) for position in range(count)]


def frequencies(logits: torch.Tensor, count: int = 20000, **sampling: object) -> torch.Tensor:
    choices = choose(logits.expand(count, -1), draws_of(count, **sampling))
    return torch.bincount(torch.tensor([c.token for c in choices]), minlength=len(logits)) / count


def test_draws_are_uniform_and_differ_by_seed_position_and_token() -> None:
    draws = [Draw(SamplingParams(), seed, at) for seed in range(50) for at in range(200)]
    values = uniform(draws, 20, torch.device("cpu"))
    assert len(values.unique()) == 200_000
    assert values.min() > 0.0
    assert values.max() < 1.0
    assert abs(values.mean().item() - 0.5) < 0.003
    assert torch.histc(values, 10, 0, 1).min() > 19_500
    assert torch.corrcoef(values.T).fill_diagonal_(0.0).abs().max() < 0.05


def test_the_last_bits_of_logits_do_not_change_tokens() -> None:
    # What another batch shape does to float32 logits; borders of cumulated probabilities fail this.
    torch.manual_seed(4)
    logits = torch.randn(2000, 4096)
    nudged = logits + torch.randn_like(logits) * 2e-6
    draws = draws_of(2000)
    assert choose(logits, draws) == choose(nudged, draws)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    expected = (logits / temperature).softmax(0)
    assert torch.allclose(frequencies(logits, temperature=temperature), expected, atol=0.015)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert torch.allclose(
        frequencies(logits, top_p=0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015
    )
    assert frequencies(logits, top_p=1e-6)[0] == 1.0


def test_top_k_keeps_the_best_k() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    seen = frequencies(logits, top_k=2)
    assert torch.allclose(seen, torch.tensor([0.0, 0.0, 3 / 7, 4 / 7]), atol=0.015)


def test_min_p_is_relative_to_the_best() -> None:
    logits = torch.tensor([0.6, 0.31, 0.09]).log()
    assert (frequencies(logits, min_p=0.5) > 0).tolist() == [True, True, False]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(3)
    logits = torch.randn(6, 50)
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_p=0.8),
        SamplingParams(top_k=3),
        SamplingParams(top_k=9, top_p=0.5, min_p=0.1, temperature=1.7),
        SamplingParams(temperature=1e-6),
    ]
    draws = [Draw(one, 9, row) for row, one in enumerate(params)]
    together_ = [choice.token for choice in choose(logits, draws)]
    alone = [choose(logits[row : row + 1], [draw])[0].token for row, draw in enumerate(draws)]
    assert together_ == alone
    assert together_[5] == logits[5].argmax()


async def test_top_k_one_equals_greedy(llama, fleet) -> None:
    prompt = prompt_of(9)
    async with fleet() as engines:
        engine = await engines.add(llama)
        answer = await collect(
            engine.generate(request_of(prompt, 12, temperature=1.3, top_k=1, seed=4))
        )
    assert answer.tokens == llama.greedy(prompt, 12)


async def test_seed_repeats_and_survives_a_resume_on_another_worker(llama, fleet) -> None:
    prompt, sampling = prompt_of(10), {"temperature": 2.0, "top_p": 0.95, "seed": 123}
    async with fleet() as engines:
        first, second = await engines.add(llama), await engines.add(llama, token_budget=6)
        whole = await collect(first.generate(request_of(prompt, 16, **sampling)))
        resumed = request_of((*prompt, *whole.tokens[:7]), 9, resumed_tokens=7, **sampling)
        rest, remote, other, unseeded = await together(
            collect(second.generate(resumed)),
            engines.generate_remotely(second, first, request_of(prompt, 16, **sampling)),
            collect(first.generate(request_of(prompt, 16, **{**sampling, "seed": 124}))),
            collect(first.generate(request_of(prompt, 16, **{**sampling, "seed": None}))),
        )
    assert whole.tokens[7:] == rest.tokens
    assert remote.tokens == whole.tokens
    assert other.tokens != whole.tokens
    assert unseeded.tokens != whole.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_logprobs_are_those_of_the_unmodified_distribution(
    llama, fleet, temperature: float
) -> None:
    sampling = {"temperature": temperature, "top_k": 5, "seed": 1, "logprobs": True}
    request = request_of(prompt_of(9), 8, **sampling)
    async with fleet() as engines:
        prefill, decode = await engines.add(llama), await engines.add(llama)
        local = await collect(decode.generate(request))
        remote = await engines.generate_remotely(prefill, decode, request)
    sequence = [*request.input_ids, *local.tokens]
    expected = llama.logits(sequence).log_softmax(-1)
    for answer in (local, remote):
        assert answer.tokens == local.tokens
        assert len(answer.logprobs) == 8
        for index, (token, logprob) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
            assert logprob == pytest.approx(expected[8 + index, token].item(), abs=1e-3)
