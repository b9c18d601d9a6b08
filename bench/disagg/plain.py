"""The engine beside plain `transformers` in one process: same weights, same requests."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from baton.engine.torch import TorchEngine, TorchEngineOptions
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.requests import EngineRequest, SamplingParams
from bench.disagg.work import Arrival, prompt_ids

_BATCH = 8
"""Requests that plain serving collects for one call of `generate`."""


def open_engine(folder: Path, device: str, dtype: str, kv_memory_mib: int) -> TorchEngine:
    """Returns an engine on the model, not started."""
    options = TorchEngineOptions(
        model_dir=str(folder),
        kv_memory_bytes=kv_memory_mib << 20,
        device=device,
        dtype=dtype,
        token_budget=None,
        reuse_prefix=False,
    )
    return TorchEngine(options)


async def start(engine: TorchEngine) -> None:
    """Starts an engine that has no peers."""
    await engine.start(InProcessTransport("plain", InProcessFabric()))


async def answers(
    engine: TorchEngine, prompts: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[list[int]]:
    """Returns the greedy answers to all prompts at once."""

    async def one(number: int) -> list[int]:
        sampling = SamplingParams(max_tokens=counts[number], temperature=0.0, ignore_eos=True)
        request = EngineRequest(f"r{number}", tuple(prompts[number]), sampling)
        return [token async for event in engine.generate(request) for token in event.token_ids]

    return await asyncio.gather(*(one(number) for number in range(len(prompts))))


async def engine_tokens_per_s(engine: TorchEngine, requests: Sequence[Arrival]) -> float:
    """Returns answered tokens per second when all requests are there at once."""
    prompts = [prompt_ids(it.prompt, index) for index, it in enumerate(requests)]
    started_s = time.perf_counter()
    told = await answers(engine, prompts, [it.answer for it in requests])
    return sum(map(len, told)) / (time.perf_counter() - started_s)


def plain_tokens_per_s(
    folder: Path, requests: Sequence[Arrival], device: str, dtype: torch.dtype
) -> float:
    """Returns the same of `transformers` as one would write it: batches padded on the left.

    Every batch generates as long as its longest answer; what a request did not ask for is
    thrown away and does not count.
    """
    factory: Any = AutoModelForCausalLM
    model = factory.from_pretrained(folder, dtype=dtype).to(device).eval()
    model.generation_config.eos_token_id = None
    _generate(model, requests[:1], most=2)
    started_s = time.perf_counter()
    for first in range(0, len(requests), _BATCH):
        _generate(model, requests[first : first + _BATCH])
    return sum(it.answer for it in requests) / (time.perf_counter() - started_s)


def _generate(model: Any, batch: Sequence[Arrival], most: int | None = None) -> None:
    longest = max(it.prompt for it in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, it in enumerate(batch):
        ids[row, longest - it.prompt :] = torch.tensor(prompt_ids(it.prompt, row).tolist())
        mask[row, longest - it.prompt :] = 1
    count = most or max(it.answer for it in batch)
    with torch.inference_mode():
        model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        ).cpu()
