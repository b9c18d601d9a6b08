"""What a simulated engine pretends to be: a model's outline, without its weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.errors import StartupError
from baton.latency import WorkerCosts
from baton.models import model_dir, model_name, tokenizer_digest

_KV_BYTES_PER_NUMBER = 2
"""KV is counted as bfloat16, whatever would compute it."""


@dataclass(frozen=True, slots=True)
class SimulatedSpec:
    """The outline of a model: what its fleet agrees on, and how much KV a token takes."""

    model: str
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    tokenizer_digest: str
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class SimulatedOptions:
    """How a simulated engine runs.

    `costs` says how long steps take, in seconds; with all coefficients zero everything is at once.
    The instance is read, never fitted, so engines may share it. `token_budget` is the most tokens
    of one step and `max_running` the most sequences, as for the embedded engine.
    """

    spec: SimulatedSpec
    kv_memory_bytes: int
    block_size: int = 16
    token_budget: int = 512
    max_running: int = 256
    reuse_prefix: bool = True
    costs: WorkerCosts = field(default_factory=WorkerCosts)

    @property
    def block_bytes(self) -> int:
        """Bytes that one KV block would take."""
        return self.block_size * self.spec.kv_bytes_per_token

    @property
    def kv_blocks(self) -> int:
        """Blocks that fit the memory."""
        return self.kv_memory_bytes // self.block_bytes


def load_spec(model: str) -> SimulatedSpec:
    """Reads the outline of a model from its configuration; needs no weights.

    Raises StartupError naming what is missing.
    """
    directory = model_dir(model)
    config = _read(directory / "config.json")
    generation = directory / "generation_config.json"
    eos = (_read(generation) if generation.is_file() else {}).get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id")
    text = config.get("text_config", config)
    try:
        return SimulatedSpec(
            model=model_name(str(directory)),
            context_length=int(text["max_position_embeddings"]),
            vocab_size=int(text["vocab_size"]),
            eos_ids=_ids(eos),
            tokenizer_digest=tokenizer_digest(directory),
            kv_bytes_per_token=_kv_bytes_per_token(text),
        )
    except KeyError as missing:
        raise StartupError(f"{directory / 'config.json'}: {missing} is missing") from missing


def _kv_bytes_per_token(config: dict[str, Any]) -> int:
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    numbers = 2 * int(config["num_hidden_layers"]) * kv_heads * head_size
    return numbers * _KV_BYTES_PER_NUMBER


def _ids(eos: int | list[int] | None) -> frozenset[int]:
    if eos is None:
        return frozenset()
    return frozenset(eos) if isinstance(eos, list) else frozenset((eos,))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartupError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path}: must hold a JSON object")
    return value
