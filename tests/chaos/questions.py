"""Prompts with the model's greedy answers, computed by `transformers` before anything breaks."""

import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from baton.models import DEFAULT_MODEL, model_dir
from tests.chaos.traffic import Question

_LENGTHS = (12, 40, 90, 130, 200, 260, 400, 640, 900, 1300)
_ANSWERS = (8, 24, 48)
_SHARED_TOKENS = 96


def make_questions(seed: int, cache: Path) -> list[Question]:
    """Returns the questions of a campaign; half of the long ones begin alike."""
    file = cache / f"questions-{seed}.json"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_compute(random.Random(seed))))
    return [Question(tuple(ids), tuple(answer)) for ids, answer in json.loads(file.read_text())]


def _compute(rng: random.Random) -> list[tuple[list[int], list[int]]]:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_dir(DEFAULT_MODEL), dtype=torch.float32)
    shared = [rng.randrange(300, 4000) for _ in range(_SHARED_TOKENS)]
    found = []
    for at, length in enumerate((*_LENGTHS, *_LENGTHS)):
        ids = [rng.randrange(300, 4000) for _ in range(length)]
        if at % 2 and length > _SHARED_TOKENS:
            ids[:_SHARED_TOKENS] = shared
        found.append((ids, _greedy(model, ids, rng.choice(_ANSWERS))))
    return found


def _greedy(model: torch.nn.Module, input_ids: list[int], tokens: int) -> list[int]:
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]  # a method of transformers' models
            torch.tensor([input_ids]),
            attention_mask=torch.ones(1, len(input_ids), dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(token) for token in output[0, len(input_ids) :]]
