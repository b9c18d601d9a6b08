"""What a start needs of the machine, and what a started engine says it is."""

import secrets
from pathlib import Path
from typing import Any

from baton.engine.base import EngineCapabilities
from baton.engine.sglang import frames
from baton.engine.sglang.options import (
    AGGREGATED,
    DECODE,
    Places,
    SglangOptions,
    kv_bytes_per_token,
    read_model_config,
)
from baton.models import tokenizer_digest
from baton.ports import free_port


def new_places(directory: Path) -> Places:
    """Returns places that nobody uses; sockets of this machine are in `directory`."""
    name = secrets.token_hex(4)
    return Places(
        free_port(""), f"ipc://{directory}/{name}-events", f"ipc://{directory}/{name}-replay"
    )


def describe(
    options: SglangOptions, arguments: dict[str, Any], ready: frames.Ready
) -> EngineCapabilities:
    """Returns what the engine is; its layout names all that two engines must share to pair."""
    config = read_model_config(options.model_dir)
    dtype = str(arguments.get("dtype", "auto"))
    layout = "/".join(
        (
            "sglang",
            f"tp{options.tensor_parallelism}",
            f"page{options.block_size}",
            dtype,
            ready.kv_dtype,
        )
    )
    return EngineCapabilities(
        model=Path(options.model_dir).name,
        context_length=ready.context_length,
        vocab_size=int(config["vocab_size"]),
        block_size=options.block_size,
        kv_bytes_per_token=kv_bytes_per_token(config, dtype),
        kv_layout=layout,
        kv_blocks=ready.kv_tokens // options.block_size,
        tokenizer_digest=tokenizer_digest(Path(options.model_dir)),
        prefills_locally=options.role == AGGREGATED,
        takes_prefilled=options.role == DECODE,
        device=f"sglang/{ready.device}",
    )
