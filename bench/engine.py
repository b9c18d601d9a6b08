"""The embedded engine against `transformers` generate: same weights, same prompts, one process.

    python -m bench.engine [--device cpu|cuda] [--dtype float32|bfloat16] [--size tiny|1b|8b]

Weights are random, so answers mean nothing and tokens are compared, not read. It prints a table
and, last, one JSON line; --record keeps the result.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

from baton.engine.torch import TorchEngine, TorchEngineOptions
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.requests import EngineRequest, SamplingParams
from bench import report

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096,
    },
    "mid": {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096,
    },
    "100m": {
        "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 4096,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
CONTEXT = 16384
ANSWER = 64


def main() -> None:
    """Reads the command line and runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", default="tiny", choices=tuple(SIZES))
    parser.add_argument("--batches", default="1,16", help="Batch sizes for decode, by commas.")
    parser.add_argument("--prompt", type=int, default=1024, help="Prompt length. Tokens.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch.")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder), options.size, options.device, options.dtype)
        figures = asyncio.run(compare(model, folder, options))
    name = f"engine-{options.size}-{options.device}-{options.dtype}"
    details = {"prompt_tokens": options.prompt, "answer_tokens": ANSWER, "device": device_name()}
    print(json.dumps(details))
    report.emit(name, figures, details, options.record)


def save_model(folder: Path, size: str, device: str, dtype: str) -> Any:
    """Writes a random Llama with a tokenizer and returns it on the device."""
    torch.manual_seed(0)
    shape = SIZES[size]
    config = LlamaConfig(**shape, max_position_embeddings=CONTEXT, initializer_range=0.05)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    vocabulary = {str(token): token for token in range(shape["vocab_size"])}
    Tokenizer(WordLevel(vocabulary, unk_token="0")).save(str(folder / "tokenizer.json"))  # noqa: S106
    return model


async def compare(model: Any, folder: str, options: argparse.Namespace) -> dict[str, float | None]:
    """Returns tokens per second of both, their ratio, and how many answers are identical."""
    engine = TorchEngine(
        TorchEngineOptions(
            model_dir=folder,
            kv_memory_bytes=2**30 if options.device == "cpu" else 16 * 2**30,
            device=options.device,
            dtype=options.dtype,
            token_budget=512 if options.device == "cpu" else 4096,
            reuse_prefix=False,
        )
    )
    await engine.start(InProcessTransport("bench", InProcessFabric()))
    figures: dict[str, float | None] = {}
    try:
        for batch in report.steps([int(it) for it in options.batches.split(",")], "batches"):
            figures |= await compare_batch(engine, model, batch, options.prompt)
    finally:
        await engine.stop()
    return figures


async def compare_batch(
    engine: TorchEngine, model: Any, batch: int, prompt_tokens: int
) -> dict[str, float | None]:
    """Measures one batch size; a first round on both sides warms up."""
    generator = torch.Generator().manual_seed(batch)
    vocabulary = model.config.vocab_size
    prompts = torch.randint(5, vocabulary, (batch, prompt_tokens), generator=generator).tolist()
    await answer(engine, prompts, 4)
    generate(model, prompts, 4)
    first_s, _ = await timed_answer(engine, prompts, 1)
    ours_s, ours = await timed_answer(engine, prompts, ANSWER)
    their_first_s, _ = timed(lambda: generate(model, prompts, 1), model.device)
    theirs_s, theirs = timed(lambda: generate(model, prompts, ANSWER), model.device)
    decoded = batch * (ANSWER - 1)
    ours_per_s, theirs_per_s = decoded / (ours_s - first_s), decoded / (theirs_s - their_first_s)
    same = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
    return {
        f"b{batch}_identical_share": same / batch,
        f"b{batch}_prefill_tokens_per_s": batch * prompt_tokens / first_s,
        f"b{batch}_transformers_prefill_tokens_per_s": batch * prompt_tokens / their_first_s,
        f"b{batch}_decode_tokens_per_s": ours_per_s,
        f"b{batch}_transformers_decode_tokens_per_s": theirs_per_s,
        f"b{batch}_decode_ratio": ours_per_s / theirs_per_s,
    }


async def answer(
    engine: TorchEngine, prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Returns the greedy answers of the engine to all prompts at once."""
    sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)

    async def one(number: int, prompt: Sequence[int]) -> list[int]:
        request = EngineRequest(f"r{number}", tuple(prompt), sampling)
        return [token async for event in engine.generate(request) for token in event.token_ids]

    return await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))


async def timed_answer(
    engine: TorchEngine, prompts: Sequence[Sequence[int]], count: int
) -> tuple[float, list[list[int]]]:
    """Returns the seconds and answers of the engine."""
    started_s = time.perf_counter()
    answers = await answer(engine, prompts, count)
    return time.perf_counter() - started_s, answers


def generate(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Returns the greedy answers of `transformers` to all prompts in one batch."""
    ids = torch.tensor(prompts, device=model.device)
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    answers: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return answers


def timed(
    work: Callable[[], list[list[int]]], device: torch.device
) -> tuple[float, list[list[int]]]:
    """Returns the seconds and result of work on a device."""
    started_s = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s, result


def device_name() -> str:
    """Returns what the figures were measured on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
