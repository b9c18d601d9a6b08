"""What a right answer is: the default model's own, computed by `transformers`."""

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from baton.models import DEFAULT_MODEL, model_dir


class Reference:
    """The default model as `transformers` runs it: what every greedy answer must equal."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        directory = model_dir(DEFAULT_MODEL)
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def greedy(self, input_ids: list[int], max_tokens: int) -> list[int]:
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor([input_ids]),
                attention_mask=torch.ones(1, len(input_ids), dtype=torch.long),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [int(token) for token in output[0, len(input_ids) :]]
