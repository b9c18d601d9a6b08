"""Putting an engine's parts together."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from baton.blocks import root_hash
from baton.engine.admit import ReservationBook
from baton.engine.base import EngineCapabilities
from baton.engine.torch.graphcheck import choose_decode_graphs
from baton.engine.torch.host_memory import TorchHostMemory
from baton.engine.torch.loop import Output, StepLoop
from baton.engine.torch.model import LoadedModel, load_model
from baton.engine.torch.runner import StepRunner, allocate_kv, kv_layout
from baton.engine.torch.scheduler import Scheduler
from baton.engine.torch.selfcheck import choose_decode_kernel
from baton.engine.torch.sizing import MOST_TOKENS, StepSizer
from baton.kv.pool import BlockPool
from baton.kv.transfer import KvTransport, PoolMemory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TorchEngineOptions:
    """How the embedded engine runs one model.

    `device` is auto, cpu or cuda; `dtype` is auto (float32 on CPU, bfloat16 on CUDA), float32 or
    bfloat16. `token_budget` is the most tokens one step computes: less keeps running streams
    smooth, more makes prefill fast. None sizes steps by what they cost, so that streams keep
    within `tpot_target_s` seconds per token, as long as nobody waits for `ttft_target_s` to start.
    """

    model_dir: str
    kv_memory_bytes: int
    host_memory_bytes: int = 0
    block_size: int = 16
    device: str = "auto"
    dtype: str = "auto"
    token_budget: int | None = 512
    tpot_target_s: float = 0.2
    ttft_target_s: float = 2.0
    max_running: int = 64
    reuse_prefix: bool = True


@dataclass(frozen=True, slots=True)
class StartedEngine:
    """What exists from `start` to `stop`."""

    model: LoadedModel
    capabilities: EngineCapabilities
    memory: PoolMemory
    pool: BlockPool
    steps: StepLoop
    thread: threading.Thread
    transport: KvTransport
    reservations: ReservationBook


def assemble(
    options: TorchEngineOptions,
    transport: KvTransport,
    post: Callable[[Sequence[Output]], None],
    model: LoadedModel | None = None,
) -> StartedEngine:
    """Loads the model, unless one is given, and allocates the rest.

    Slow, so it belongs beside the event loop. What it is at is logged: `baton up` shows it to those
    who wait. Raises StartupError naming what is missing.
    """
    if model is None:
        logger.info("loading weights model=%s", options.model_dir)
        model = load_model(options.model_dir, options.device, options.dtype)
    logger.info("allocating the KV pool mib=%d", options.kv_memory_bytes >> 20)
    kv = allocate_kv(model, options.block_size, options.kv_memory_bytes)
    logger.info("warming up device=%s", model.device)
    kernel = choose_decode_kernel(model, kv)
    graphs = choose_decode_graphs(model, kv, kernel, options.max_running)
    block_count = kv.tensor.shape[0]
    block_bytes = kv.tensor[0].nbytes
    layout = kv_layout(model, options.block_size)
    pool = BlockPool(
        block_count,
        options.block_size,
        partial(root_hash, model.name),
        reuse_prefix=options.reuse_prefix,
        host=TorchHostMemory(kv, options.host_memory_bytes) if options.host_memory_bytes else None,
    )
    sizer = None
    if options.token_budget is None:
        sizer = StepSizer(options.tpot_target_s, patience_s=options.ttft_target_s)
    scheduler = Scheduler(
        pool,
        token_budget=options.token_budget or MOST_TOKENS,
        max_running=options.max_running,
        sizer=sizer,
    )
    runner = StepRunner(model, kv, kernel, graphs)
    steps = StepLoop(runner, scheduler, options.block_size, post, sizer)
    return StartedEngine(
        model=model,
        capabilities=EngineCapabilities(
            model=model.name,
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            block_size=options.block_size,
            kv_bytes_per_token=block_bytes // options.block_size,
            kv_layout=layout,
            kv_blocks=block_count,
            tokenizer_digest=model.tokenizer_digest,
            device=_device_name(model.device),
        ),
        memory=PoolMemory(
            kv.tensor.data_ptr(), block_bytes, block_count, layout, str(model.device), kv.segment
        ),
        pool=pool,
        steps=steps,
        thread=threading.Thread(target=steps.run, name="baton-engine", daemon=True),
        transport=transport,
        reservations=ReservationBook(pool, transport),
    )


def _device_name(device: torch.device) -> str:
    """Returns what kind of device it is: two of the same kind compute equally fast."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
