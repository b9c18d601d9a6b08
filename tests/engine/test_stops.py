"""Why generations end."""

import json
import shutil

import pytest

from baton.requests import FinishReason
from tests.engine.conftest import EOS, TinyModel, collect, letter, prompt_of, request_of

PROMPT = prompt_of(9)


async def answer_of(fleet, model, request):
    async with fleet() as engines:
        engine = await engines.add(model)
        return await collect(engine.generate(request))


async def test_max_tokens_ends_with_length(llama, fleet) -> None:
    answer = await answer_of(fleet, llama, request_of(PROMPT, 5))
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.tokens == llama.greedy(PROMPT, 5)


async def test_stop_token_is_the_last_token(llama, fleet) -> None:
    expected = llama.greedy(PROMPT, 12)
    stop = expected[4]
    answer = await answer_of(fleet, llama, request_of(PROMPT, 12, stop_token_ids=(stop,)))
    assert answer.finish_reason is FinishReason.STOP
    assert answer.tokens == expected[: expected.index(stop) + 1]


@pytest.mark.parametrize("ignore_eos", [False, True])
async def test_end_of_sequence_ends_unless_ignored(
    llama, fleet, tmp_path, ignore_eos: bool
) -> None:
    expected = llama.greedy(PROMPT, 12)
    directory = tmp_path / "model"
    shutil.copytree(llama.directory, directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [EOS, expected[5]]})
    )
    model = TinyModel(directory, llama.module)
    answer = await answer_of(fleet, model, request_of(PROMPT, 12, ignore_eos=ignore_eos))
    if ignore_eos:
        assert answer.tokens == expected
    else:
        assert answer.finish_reason is FinishReason.STOP
        assert answer.tokens == expected[: expected.index(expected[5]) + 1]


async def test_stop_string_across_tokens_ends(llama, fleet) -> None:
    expected = llama.greedy(PROMPT, 12)
    stop = "".join(map(letter, expected[3:6]))
    answer = await answer_of(fleet, llama, request_of(PROMPT, 12, stop=("no such", stop)))
    assert answer.finish_reason is FinishReason.STOP
    assert answer.tokens == expected[:6]


async def test_stop_string_that_began_before_a_resume_ends(llama, fleet) -> None:
    expected = llama.greedy(PROMPT, 12)
    stop = "".join(map(letter, expected[3:6]))
    request = request_of((*PROMPT, *expected[:5]), 7, resumed_tokens=5, stop=(stop,))
    answer = await answer_of(fleet, llama, request)
    assert answer.finish_reason is FinishReason.STOP
    assert answer.tokens == expected[5:6]


async def test_full_context_ends_with_length(llama, fleet) -> None:
    prompt = prompt_of(250)
    answer = await answer_of(fleet, llama, request_of(prompt, 100))
    assert answer.finish_reason is FinishReason.LENGTH
    assert len(answer.tokens) == 6


async def test_first_token_from_a_prefill_worker_can_be_the_last(llama, fleet) -> None:
    async with fleet() as engines:
        prefill, decode = await engines.add(llama), await engines.add(llama)
        answer = await engines.generate_remotely(prefill, decode, request_of(PROMPT, 1))
    assert answer.tokens == llama.greedy(PROMPT, 1)
    assert answer.finish_reason is FinishReason.LENGTH
