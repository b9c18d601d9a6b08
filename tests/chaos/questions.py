"""Prompts with the model's greedy answers, computed by `transformers` before anything breaks."""

import json
import random
from pathlib import Path

from tests.chaos.traffic import Question
from tests.support.reference import Reference

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
    reference = Reference()
    shared = [rng.randrange(300, 4000) for _ in range(_SHARED_TOKENS)]
    found = []
    for at, length in enumerate((*_LENGTHS, *_LENGTHS)):
        ids = [rng.randrange(300, 4000) for _ in range(length)]
        if at % 2 and length > _SHARED_TOKENS:
            ids[:_SHARED_TOKENS] = shared
        found.append((ids, reference.greedy(ids, rng.choice(_ANSWERS))))
    return found
