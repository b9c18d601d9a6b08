"""What moving the KV adds to the time to the first token, on a real engine with random weights."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

from baton.blocks import blocks_for
from baton.engine.torch import TorchEngine, TorchEngineOptions
from baton.kv.layered import LayeredWire
from baton.kv.nixl import NixlWire
from baton.kv.samehost import SameHostWire
from baton.kv.transfer import KvDestination, KvReceipt, OutgoingTransfer
from baton.kv.wired import WiredTransport
from baton.requests import EngineRequest, SamplingParams
from bench.transfer.pools import TIMEOUT_S, ChildPool

CONTEXT = 32768
BLOCK_SIZE = 16
VOCABULARY = 4096
SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip
_ids = count()


@dataclass(frozen=True, slots=True)
class Added:
    """One prompt length's figures, in seconds: medians over the rounds.

    `compute_s` is a prefill that moves nothing. `tail_s` is from the end of computing to the
    verified receipt, `slowed_s` how much longer computing took with a transfer beside it.
    """

    tokens: int
    kv_bytes: int
    compute_s: float
    tail_s: float
    slowed_s: float
    tail_without_overlap_s: float

    @property
    def share(self) -> float:
        """What the transfer adds with overlap, as a share of computing."""
        return (self.tail_s + max(0.0, self.slowed_s)) / self.compute_s

    @property
    def share_without_overlap(self) -> float:
        """The same when everything moves after computing."""
        return self.tail_without_overlap_s / self.compute_s


class _Deferred:
    """An outgoing transfer that pushes only when the prompt is computed."""

    def __init__(self, outgoing: OutgoingTransfer) -> None:
        self._outgoing = outgoing
        self._pushes: list[tuple[Sequence[int], int]] = []

    def push(self, source_blocks: Sequence[int], offset: int) -> None:
        self._pushes.append((tuple(source_blocks), offset))

    async def finish(self, tokens: int) -> KvReceipt:
        for blocks, offset in self._pushes:
            self._outgoing.push(blocks, offset)
        return await self._outgoing.finish(tokens)

    async def abort(self) -> None:
        await self._outgoing.abort()


class _Transport(WiredTransport):
    """The workers' transport, which can be told not to overlap."""

    def __init__(self, agent: str) -> None:
        super().__init__(agent, LayeredWire(SameHostWire(agent), NixlWire(agent)), TIMEOUT_S)
        self.overlaps = True

    def open(self, destination: KvDestination) -> OutgoingTransfer:
        outgoing = super().open(destination)
        return outgoing if self.overlaps else _Deferred(outgoing)


def dtype_on(device: str) -> str:
    """Returns the number format that engines use on a device."""
    return "float32" if device == "cpu" else "bfloat16"


def token_bytes(shape: str, device: str) -> int:
    """Returns the bytes of one token's KV."""
    have = SHAPES[shape]
    head = have["hidden_size"] // have["num_attention_heads"]
    width = head * have["num_key_value_heads"]
    return 2 * have["num_hidden_layers"] * width * (4 if dtype_on(device) == "float32" else 2)


def save_model(folder: Path, shape: str, device: str) -> None:
    """Writes a Llama with random weights and a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],  # type: ignore[arg-type]  # its parameters are of many types
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, dtype_on(device))).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    vocabulary = {str(token): token for token in range(VOCABULARY)}
    Tokenizer(WordLevel(vocabulary, unk_token="0")).save(str(folder / "tokenizer.json"))  # noqa: S106
    del model


class Bench:
    """A prefill engine here and a decode worker's pool in another process."""

    def __init__(
        self, folder: Path, device: str, reader_device: str, shape: str, longest: int
    ) -> None:
        self._reader_device = reader_device
        self._transport = _Transport("prefill")
        self._engine = TorchEngine(
            TorchEngineOptions(
                model_dir=str(folder),
                kv_memory_bytes=(longest + 16 * BLOCK_SIZE) * token_bytes(shape, device),
                block_size=BLOCK_SIZE,
                device=device,
                dtype=dtype_on(device),
                token_budget=512 if device == "cpu" else 4096,
                reuse_prefix=False,
            )
        )
        self._reader: ChildPool | None = None

    async def start(self, core: int | None) -> str:
        """Starts both sides and returns how bytes get from one to the other."""
        await self._engine.start(self._transport)
        have = self._engine.capabilities
        block_bytes = have.kv_bytes_per_token * have.block_size
        self._reader = ChildPool(
            "decode", self._reader_device, block_bytes, have.kv_blocks, False, core=core
        )
        await self._reader.ask("start", have.kv_layout)
        agent, metadata, _, _ = await self._reader.ask("place")
        await self._transport.connect(agent, metadata, have.kv_layout)
        ours = self._transport
        await self._reader.ask("connect", ours.agent, ours.metadata(), have.kv_layout)
        return ours.paths()[agent]

    async def stop(self) -> None:
        """Ends both sides."""
        await self._engine.stop()
        if self._reader is not None:
            await self._reader.stop()

    async def measure(self, tokens: int, rounds: int) -> Added:
        """Measures one prompt length; every round has each way once, in turns."""
        for overlaps in (True, False):
            await self._prefill(tokens, overlaps)
        alone, together, tails, late = [], [], [], []
        for _ in range(rounds):
            alone.append(await self._compute(tokens))
            compute_s, tail_s = await self._prefill(tokens, overlaps=True)
            together.append(compute_s)
            tails.append(tail_s)
            late.append((await self._prefill(tokens, overlaps=False))[1])
        compute_s = statistics.median(alone)
        return Added(
            tokens=tokens,
            kv_bytes=tokens * self._engine.capabilities.kv_bytes_per_token,
            compute_s=compute_s,
            tail_s=statistics.median(tails),
            slowed_s=statistics.median(
                with_it - without for with_it, without in zip(together, alone, strict=True)
            ),
            tail_without_overlap_s=statistics.median(late),
        )

    async def _compute(self, tokens: int) -> float:
        """Computes a prompt without moving it."""
        request = _request(tokens)
        async for event in self._engine.generate(request):
            assert event.prefilled is not None
            return event.prefilled.compute_s
        raise AssertionError("the engine gave no token")

    async def _prefill(self, tokens: int, overlaps: bool) -> tuple[float, float]:
        """Returns the seconds of computing and those from its end to the verified receipt."""
        assert self._reader is not None
        self._transport.overlaps = overlaps
        request = _request(tokens)
        blocks = tuple(range(blocks_for(tokens, BLOCK_SIZE)))
        destination = await self._reader.ask("expect", request.request_id, blocks)
        began_s = time.monotonic()
        prefilled = await self._engine.prefill(request, destination)
        assert prefilled.receipt is not None
        verified_s = await self._reader.ask("verify", prefilled.receipt)
        in_all_s = verified_s - began_s
        return prefilled.compute_s, in_all_s - prefilled.compute_s - prefilled.queue_s


def _request(tokens: int) -> EngineRequest:
    number = next(_ids)
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, VOCABULARY, (tokens,), generator=generator).tolist()
    return EngineRequest(f"bench-{number}", tuple(ids), SamplingParams(max_tokens=1))
