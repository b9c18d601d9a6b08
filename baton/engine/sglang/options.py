"""What an SGLang engine is started with: the mesh's part, and the operator's. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.errors import StartupError

PREFILL = "prefill"
DECODE = "decode"
AGGREGATED = "aggregated"

TRANSFER_BACKEND = "nixl"

_OWNED = {
    "model_path": "set `model`",
    "page_size": "set `cache.block_size`",
    "skip_tokenizer_init": "the router owns the tokenizer",
    "disaggregation_mode": "the worker's role decides",
    "disaggregation_bootstrap_port": "a free one is taken at every start",
    "kv_events_config": "the mesh's index follows the engine's events",
    "incremental_streaming_output": "outputs are read as cumulative",
    "dp_size": "run one worker for each rank",
}
"""Arguments that are the mesh's, and what to do instead."""

_SIZES = frozenset({"max_total_tokens", "mem_fraction_static"})

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}


@dataclass(frozen=True, slots=True)
class SglangOptions:
    """How one worker runs SGLang.

    `arguments` are the operator's, by SGLang's own names; they win where the mesh has no say.
    The engine listens at `host`; peers reach it at `reachable`.
    """

    model_dir: str
    role: str
    block_size: int
    kv_memory_bytes: int
    host: str = "127.0.0.1"
    reachable: str = "127.0.0.1"
    reuse_prefix: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensor_parallelism(self) -> int:
        """How many GPUs share one layer."""
        return int(self.arguments.get("tp_size", 1))

    @property
    def node_rank(self) -> int:
        """Which of the machines that share the engine this is; the first one serves."""
        return int(self.arguments.get("node_rank", 0))

    @property
    def can_seed(self) -> bool:
        """Tells whether the engine honours a request's seed."""
        return bool(self.arguments.get("enable_deterministic_inference", False))


@dataclass(frozen=True, slots=True)
class Places:
    """Of one start: the port where legs meet, and where events are published and replayed.

    Events stay on this machine, between processes of one user: they name what people asked.
    """

    bootstrap: int
    events: str
    replay: str


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises StartupError for an argument that is the mesh's own."""
    for name in arguments:
        if name in _OWNED:
            raise StartupError(f"engine.sglang.{name} is the mesh's: {_OWNED[name]}")


def engine_arguments(options: SglangOptions, places: Places) -> dict[str, Any]:
    """Returns the keyword arguments of `sglang.Engine`."""
    check_arguments(options.arguments)
    own: dict[str, Any] = {
        "model_path": options.model_dir,
        "skip_tokenizer_init": True,
        "page_size": options.block_size,
        "host": options.host,
        "kv_events_config": json.dumps(_events(places)),
        "disable_radix_cache": not options.reuse_prefix,
    }
    defaults: dict[str, Any] = {
        "log_level": "warning",
        "grammar_backend": "none",
        "enable_metrics": True,  # without it outputs carry no stage times
        "enable_priority_scheduling": True,
        "disable_priority_preemption": True,
    }
    if not _SIZES & options.arguments.keys():
        defaults["max_total_tokens"] = kv_tokens(options)
    if options.role != AGGREGATED:
        own["disaggregation_mode"] = options.role
        own["disaggregation_bootstrap_port"] = places.bootstrap
        defaults["disaggregation_transfer_backend"] = TRANSFER_BACKEND
    if options.role == DECODE and options.reuse_prefix:
        defaults["disaggregation_decode_enable_radix_cache"] = True
    return {**defaults, **options.arguments, **own}


def kv_tokens(options: SglangOptions) -> int:
    """Returns how many tokens the configured KV memory holds, in whole pages."""
    config = read_model_config(options.model_dir)
    bytes_per_token = kv_bytes_per_token(config, str(options.arguments.get("dtype", "auto")))
    pages = options.kv_memory_bytes // (bytes_per_token * options.block_size)
    if pages < 1:
        raise StartupError("the KV memory holds no page; raise cache.kv_memory_mib")
    return pages * options.block_size


def read_model_config(model_dir: str) -> dict[str, Any]:
    """Returns the model's config.json."""
    text = (Path(model_dir) / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Returns the KV of one token over all layers, for plain, grouped and latent attention."""
    if dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        dtype = "bfloat16" if dtype == "float32" else dtype
    width = _DTYPE_BYTES.get(dtype, 2) * int(config["num_hidden_layers"])
    if config.get("kv_lora_rank"):
        return width * (int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"]))
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return 2 * width * head_dim * int(config.get("num_key_value_heads") or heads)


def _events(places: Places) -> dict[str, Any]:
    return {
        "publisher": "zmq",
        "endpoint": places.events,
        "replay_endpoint": places.replay,
    }
