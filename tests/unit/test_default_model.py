"""The model that ships with Baton loads, talks in words and says when it is done."""

import json
import re
from collections.abc import Sequence
from pydoc_data.topics import topics

import pytest
import torch
from jinja2 import Environment
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from baton.models import DEFAULT_MODEL, model_dir

DIRECTORY = model_dir(DEFAULT_MODEL)
MAX_BYTES = 8 * 1024 * 1024
END = "<|endoftext|>"
CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is json?"},
    {"role": "assistant", "content": "A module."},
    {"role": "user", "content": "Explain it."},
]
RENDERED = (
    "<|system|>You are a helpful assistant.<|endoftext|><|user|>What is json?<|endoftext|>"
    "<|assistant|>A module.<|endoftext|><|user|>Explain it.<|endoftext|><|assistant|>"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32)
    return model.train(mode=False)


def load_json(name: str) -> dict[str, object]:
    return json.loads((DIRECTORY / name).read_text(encoding="utf-8"))


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt_ids: Sequence[int], tokens: int) -> list[int]:
    prompt = torch.tensor([prompt_ids])
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False
    )
    return output[0, len(prompt_ids) :].tolist()


def known_word_share(text: str) -> float:
    known = set(re.findall(r"[a-z]+", " ".join(topics.values()).lower()))
    words = re.findall(r"[a-z]+", text.lower())
    assert words, "the model said no word at all"
    return sum(word in known for word in words) / len(words)


@pytest.mark.parametrize(
    "prompt",
    [
        "The",
        "Return the",
        "<|user|>What is json?<|endoftext|><|assistant|>",
        "<|user|>Explain the module threading.<|endoftext|><|assistant|>",
    ],
)
def test_greedy_answers_are_words_that_python_documentation_uses(
    model: PreTrainedModel, tokenizer: Tokenizer, prompt: str
) -> None:
    answer = tokenizer.decode(greedy(model, tokenizer.encode(prompt).ids, tokens=40))
    assert known_word_share(answer) > 0.7, answer


def test_chat_answers_end_by_themselves(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    prompts = ("What is json?", "What does os.path.join do?", "Explain the module threading.")
    encoded = [tokenizer.encode(f"<|user|>{p}{END}<|assistant|>").ids for p in prompts]
    ends = [greedy(model, ids, tokens=120)[-1] == tokenizer.token_to_id(END) for ids in encoded]
    assert any(ends)


def test_distribution_is_sane_far_beyond_the_usual_training_context(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    text = " ".join(topics[name] for name in sorted(topics))[:60_000]
    ids = torch.tensor([tokenizer.encode(text).ids[:8192]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1025:-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, -1024:])
    assert ids.shape[1] == 8192
    assert float(loss) < 6.0  # a uniform guess over the vocabulary is ln 4096 = 8.3


def test_chat_template_renders_every_role_and_ends_with_the_assistant_header() -> None:
    template = load_json("tokenizer_config.json")["chat_template"]
    assert isinstance(template, str)
    plain = Environment(autoescape=False).from_string(template)
    auto = AutoTokenizer.from_pretrained(DIRECTORY)
    assert plain.render(messages=CHAT, add_generation_prompt=True) == RENDERED
    assert auto.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == RENDERED


def test_both_tokenizer_libraries_agree(tokenizer: Tokenizer) -> None:
    auto = AutoTokenizer.from_pretrained(DIRECTORY)
    text = RENDERED + 'Bytes \u00e9\u4e2d\U0001f40d  and\n\ttabs, "quotes" and numbers 12345.'
    ids = tokenizer.encode(text).ids
    assert auto(text)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_role_headers_are_single_special_tokens(tokenizer: Tokenizer) -> None:
    headers = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
    assert [tokenizer.encode(header).ids for header in headers] == [[0], [1], [2], [3]]
    assert tokenizer.decode([0, 1, 2, 3], skip_special_tokens=True) == ""


def test_end_of_sequence_agrees_between_the_files(tokenizer: Tokenizer) -> None:
    eos_token = load_json("tokenizer_config.json")["eos_token"]
    assert isinstance(eos_token, str)
    eos_id = tokenizer.token_to_id(eos_token)
    assert load_json("config.json")["eos_token_id"] == eos_id
    assert load_json("generation_config.json")["eos_token_id"] == eos_id


def test_config_fits_the_tokenizer_and_promises_a_long_context(tokenizer: Tokenizer) -> None:
    config = load_json("config.json")
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["max_position_embeddings"] == 8192
    assert config["tie_word_embeddings"] is True


def test_the_directory_is_small() -> None:
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) <= MAX_BYTES
