"""Text from tokens that come in pieces of any size."""

import random

import pytest
from tokenizers import Tokenizer

from baton.models import model_dir
from baton.text import TextStream

TEXT = "Naïve — 你好, 👋🏽 wörld 🎉! Plain words follow, and they end."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_dir("baton-tiny") / "tokenizer.json"))


def streamed(tokenizer: Tokenizer, ids: list[int], piece: int) -> str:
    stream = TextStream(tokenizer)
    text = "".join(stream.push(ids[at : at + piece]) for at in range(0, len(ids), piece))
    return text + stream.flush()


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 16, 1000])
def test_text_is_the_same_however_tokens_come(tokenizer: Tokenizer, piece: int) -> None:
    assert streamed(tokenizer, tokenizer.encode(TEXT).ids, piece) == TEXT


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
def test_answer_that_ends_within_a_character_has_all_text_before_it(
    tokenizer: Tokenizer, piece: int
) -> None:
    ids = tokenizer.encode(TEXT).ids
    for end in range(1, len(ids)):
        whole = tokenizer.decode(ids[:end]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert streamed(tokenizer, ids[:end], piece) == whole


def test_any_tokens_make_the_text_that_single_ones_make(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(50):
        ids = [rng.randrange(1, 4096) for _ in range(30)]
        assert streamed(tokenizer, ids, 8) == streamed(tokenizer, ids, 1)


def test_stop_string_ends_the_text_before_it(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("words",))
    assert stream.push(tokenizer.encode(TEXT).ids) == TEXT.partition("words")[0]
    assert stream.stopped
    assert stream.flush() == ""
