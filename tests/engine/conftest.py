"""Tiny random models, what transformers generates from them, and engines on them."""

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from baton.engine.base import Prefilled, TokenEvent
from baton.engine.torch import TorchEngine, TorchEngineOptions
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.requests import EngineRequest, FinishReason, SamplingParams

VOCAB = 64
EOS = 1
BLOCK = 4
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    # Large weights keep the best token far from the second, whatever the order of additions.
    "initializer_range": 0.6,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)),
}


@dataclass(frozen=True)
class TinyModel:
    """A saved model and the library's own copy of it."""

    directory: Path
    module: Any

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Returns what transformers generates, not stopping at the end of sequence."""
        with torch.inference_mode():
            output = self.module.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Returns the logits [tokens, vocabulary] of one plain forward pass."""
        with torch.inference_mode():
            logits: torch.Tensor = self.module(torch.tensor([list(tokens)])).logits[0]
        return logits


def write_tokenizer(directory: Path) -> None:
    """Gives every token id one letter or sign of its own."""
    words = {chr(ord("!") + index): index for index in range(VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="!"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))


def letter(token: int) -> str:
    """Returns the text of a token."""
    return chr(ord("!") + token)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Makes each model once and returns it by family."""
    torch.set_num_threads(1)
    made: dict[str, TinyModel] = {}

    def make(family: str) -> TinyModel:
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            torch.manual_seed(11)
            MODELS[family]().save_pretrained(directory)
            write_tokenizer(directory)
            module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
            module.generation_config.eos_token_id = None
            made[family] = TinyModel(directory, module)
        return made[family]

    return make


@pytest.fixture(scope="session")
def llama(tiny_model: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_model("llama")


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    """Returns a repeatable prompt."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return tuple(torch.randint(2, VOCAB, (length,), generator=generator).tolist())


_names = itertools.count()


def request_of(
    prompt: Sequence[int], max_tokens: int = 8, resumed_tokens: int = 0, **sampling: Any
) -> EngineRequest:
    """Returns a greedy request that ignores the end of sequence unless told otherwise."""
    params = SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **sampling}
    )
    name = f"request-{next(_names)}"
    return EngineRequest(name, tuple(prompt), params, resumed_tokens=resumed_tokens)


@dataclass
class Answer:
    """A whole generation."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    prefilled: Prefilled | None


async def collect(events: AsyncIterator[TokenEvent]) -> Answer:
    """Reads a generation to its end and checks the shape of its events."""
    seen = [event async for event in events]
    assert all(event.finish_reason is None for event in seen[:-1])
    assert all(event.prefilled is None for event in seen[1:])
    finish = seen[-1].finish_reason
    assert finish is not None
    return Answer(
        [token for event in seen for token in event.token_ids],
        [logprob for event in seen for logprob in event.logprobs],
        finish,
        seen[0].prefilled,
    )


class Fleet:
    """Engines of one process that can send KV to each other."""

    def __init__(self) -> None:
        self.fabric = InProcessFabric()
        self._members: list[tuple[TorchEngine, InProcessTransport]] = []

    async def add(self, model: TinyModel, **options: Any) -> TorchEngine:
        """Starts an engine and introduces it to the others."""
        settings = TorchEngineOptions(
            str(model.directory), **{"kv_memory_bytes": 1 << 18, "block_size": BLOCK, **options}
        )
        engine = TorchEngine(dataclasses.replace(settings, device="cpu"))
        transport = InProcessTransport(f"worker-{len(self._members)}", self.fabric)
        await engine.start(transport)
        layout = engine.capabilities.kv_layout
        for _, peer in self._members:
            await peer.connect(transport.agent, transport.metadata(), layout)
            await transport.connect(peer.agent, peer.metadata(), layout)
        self._members.append((engine, transport))
        return engine

    async def generate_remotely(
        self, prefill: TorchEngine, decode: TorchEngine, request: EngineRequest
    ) -> Answer:
        """Computes the prompt on one engine and generates on another."""
        transport = next(peer for engine, peer in self._members if engine is decode)
        reservation = decode.reserve(request)
        prefilled = await prefill.prefill(request, reservation.destination)
        assert prefilled.receipt is not None
        await transport.verify(prefilled.receipt, len(request.input_ids), 5.0)
        answer = await collect(decode.generate(request, reservation, prefilled))
        answer.prefilled = prefilled
        return answer

    async def stop(self) -> None:
        """Checks that nothing is leaked and stops."""
        for engine, _ in self._members:
            await until(lambda engine=engine: engine.stats().kv_blocks_owned == 0)  # type: ignore[misc]
            engine.audit()
            assert engine.stats().kv_leases == 0
        for engine, _ in self._members:
            await engine.stop()


@pytest.fixture
def fleet() -> Callable[[], Any]:
    """Returns a context manager that checks the accounting at its end."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Fleet]:
        members = Fleet()
        yield members
        await members.stop()

    return run


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for a condition that other threads bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


async def together(*answers: Awaitable[Answer]) -> list[Answer]:
    """Runs generations at the same time."""
    return list(await asyncio.gather(*answers))
