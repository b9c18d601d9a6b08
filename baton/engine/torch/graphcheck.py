"""Records the decode graphs at start and proves that they compute what the eager pass computes."""

import importlib
import logging
import time

import torch

from baton.blocks import blocks_for
from baton.engine.torch.attention import DecodeKernel, KvTensor
from baton.engine.torch.graphs import CudaRecorder, DecodeGraphs, Record
from baton.engine.torch.model import LoadedModel
from baton.engine.torch.runner import StepRunner
from baton.engine.torch.scheduler import Chunk
from baton.engine.torch.selfcheck import (
    LEAST_ALLOWED_DISTANCE,
    allowed_distance,
    check_job,
    check_tokens,
    logit_distance,
)
from baton.errors import StartupError

logger = logging.getLogger(__name__)

_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What recording raises where a model cannot be recorded or memory does not suffice."""
_LEAST_FREE_BYTES = 1 << 30
"""Graphs take a fraction of it; prompts computed later need the rest."""
_CHECKED_TOKENS = 320
"""Several of the kernel's tiles, so that contexts are split."""


def choose_decode_graphs(
    model: LoadedModel, kv: KvTensor, kernel: DecodeKernel | None, max_batch: int
) -> DecodeGraphs | None:
    """Returns graphs for steps of only decodes where this machine can have them.

    Else None: such steps run eagerly then, and the log says why. Writes to the pool's first blocks,
    so it runs before anything else.
    """
    if kernel is None or model.device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free_bytes = torch.cuda.mem_get_info()[0]
    if free_bytes < _LEAST_FREE_BYTES:
        logger.warning("decodes run without CUDA graphs: only %d MiB are free", free_bytes >> 20)
        return None
    began_s = time.monotonic()
    kernel_failures = importlib.import_module("baton.engine.torch.paged_decode").FAILURES
    graphs = recorded_graphs(model, kv, kernel, max_batch, CudaRecorder(), kernel_failures)
    if graphs is not None:
        logger.info(
            "decodes run as CUDA graphs sizes=%s mib=%d seconds=%.1f",
            ",".join(map(str, graphs.sizes)),
            (free_bytes - torch.cuda.mem_get_info()[0]) >> 20,
            time.monotonic() - began_s,
        )
    return graphs


def recorded_graphs(
    model: LoadedModel,
    kv: KvTensor,
    kernel: DecodeKernel,
    max_batch: int,
    record: Record,
    kernel_failures: tuple[type[Exception], ...] = (),
) -> DecodeGraphs | None:
    """Returns graphs that were recorded and passed the check, or None and logs why not."""
    failures: tuple[type[Exception], ...] = (StartupError, *_FAILURES, *kernel_failures)
    try:
        with torch.inference_mode():
            graphs = DecodeGraphs(model, kv, kernel, max_batch)
            graphs.record(record)
            _check(model, kv, kernel, graphs)
    except failures as error:
        reason = _first(error)
        logger.warning("decodes run without CUDA graphs: %s: %s", type(reason).__name__, reason)
        return None
    return graphs


def _check(model: LoadedModel, kv: KvTensor, kernel: DecodeKernel, graphs: DecodeGraphs) -> None:
    """Compares each size, full and with the most padding, with the eager pass.

    The sequences of a batch are beginnings of one prompt and share its blocks: their new tokens'
    KV is there already, and is written once more.
    """
    size = kv.block_size
    length = min(_CHECKED_TOKENS, kv.tensor.shape[0] * size, model.context_length - 1)
    ids = check_tokens(model, length)
    blocks = range(blocks_for(length, size))
    eager, replaying = StepRunner(model, kv, kernel), StepRunner(model, kv, kernel, graphs)
    eager.logits([Chunk(check_job(ids, blocks), 0, length)])
    allowed = LEAST_ALLOWED_DISTANCE
    for count in sorted({*graphs.sizes, *(smaller + 1 for smaller in graphs.sizes[:-1])}):
        ends = [length - length * row // count for row in range(count)]
        decodes = [Chunk(check_job(ids[:end], blocks), end - 1, 1) for end in ends]
        distance = logit_distance(replaying.logits(decodes), eager.logits(decodes))
        if not distance < allowed:
            allowed = allowed_distance(model, ids)
        if not distance < allowed:
            raise StartupError(
                f"the logits of {count} sequences differ (cosine {1 - distance:.4f})"
            )


def _first(error: BaseException) -> BaseException:
    """Returns the reason: leaving a capture that failed raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return error
