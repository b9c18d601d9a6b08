"""Proves at start that the paged pass computes what the model's own attention computes."""

import importlib
import importlib.util
import itertools
import logging
from array import array
from collections.abc import Sequence

import torch

from baton.engine.torch.attention import ATTENTION_NAME, DecodeKernel, KvTensor
from baton.engine.torch.job import Job, Order, StopRule
from baton.engine.torch.model import LoadedModel
from baton.engine.torch.runner import StepRunner
from baton.engine.torch.scheduler import Chunk
from baton.errors import StartupError
from baton.requests import EngineRequest, SamplingParams

logger = logging.getLogger(__name__)

LEAST_ALLOWED_DISTANCE = 0.01
"""One minus the cosine of two logit vectors; in float32 it stays below 1e-5."""
_ROUNDING_FACTOR = 4.0
"""How much further than the library's own two attentions from each other ours may be. Deep models
in bfloat16 with large random weights differ by 0.02 there; trained ones hardly."""


def choose_decode_kernel(model: LoadedModel, kv: KvTensor) -> DecodeKernel | None:
    """Returns the kernel for decodes where this machine can have it, after it passed the check.

    Else None: contexts are gathered then, and the log says why. Raises StartupError when the model
    cannot be served either way.
    """
    if model.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        paged_decode = importlib.import_module("baton.engine.torch.paged_decode")
        kernel: DecodeKernel = paged_decode.PagedDecode(kv)
        try:
            check_paged_attention(model, kv, kernel)
        except (StartupError, *paged_decode.FAILURES) as error:
            logger.warning("decodes gather their context: the kernel failed: %s", error)
        else:
            return kernel
    check_paged_attention(model, kv, None)
    return None


def check_paged_attention(model: LoadedModel, kv: KvTensor, kernel: DecodeKernel | None) -> None:
    """Compares prefill in two chunks and one decode with the library's own attention.

    Also warms the model up. Writes to the pool's first blocks, so it runs before anything else.
    Raises StartupError when the model cannot be served.
    """
    ids = check_tokens(model, min(2 * kv.block_size, model.context_length - 1))
    with torch.inference_mode():
        paged = _paged_logits(model, kv, kernel, ids)
        distance = logit_distance(paged, _reference_logits(model, ids, "eager"))
        is_near = distance < LEAST_ALLOWED_DISTANCE or distance < allowed_distance(model, ids)
    if not is_near:
        raise StartupError(
            f"model {model.name!r} cannot be served: with paged attention its logits differ from "
            f"its own (cosine {1 - distance:.4f}), so its attention is not standard"
        )


def logit_distance(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns one minus the cosine of two logit vectors, of the worst row where there are many."""
    return 1 - torch.cosine_similarity(logits.float(), reference.float(), dim=-1).min().item()


def allowed_distance(model: LoadedModel, ids: Sequence[int]) -> float:
    """Returns how far logits may be from each other where only rounding differs."""
    if model.dtype is torch.float32:
        return LEAST_ALLOWED_DISTANCE
    reference = _reference_logits(model, ids, "eager")
    rounding = logit_distance(_reference_logits(model, ids, "sdpa"), reference)
    return max(LEAST_ALLOWED_DISTANCE, _ROUNDING_FACTOR * rounding)


def check_tokens(model: LoadedModel, length: int) -> list[int]:
    """Returns a prompt of known tokens."""
    return [(7 * index + 3) % model.vocab_size for index in range(length)]


def _paged_logits(
    model: LoadedModel, kv: KvTensor, kernel: DecodeKernel | None, ids: Sequence[int]
) -> torch.Tensor:
    job = check_job(ids, (0, 1))
    runner = StepRunner(model, kv, kernel)
    bounds = sorted({0, len(ids) // 2, len(ids) - 1, len(ids)})
    for start, end in itertools.pairwise(bounds):
        logits = runner.logits([Chunk(job, start, end - start)])
    return logits[0]


def _reference_logits(model: LoadedModel, ids: Sequence[int], attention: str) -> torch.Tensor:
    tensor = torch.tensor([ids], device=model.device)
    model.use_attention(attention)
    try:
        output = model.module(input_ids=tensor, use_cache=False, logits_to_keep=1)
    finally:
        model.use_attention(ATTENTION_NAME)
    logits = output.logits[0, 0]
    assert isinstance(logits, torch.Tensor)
    return logits


def check_job(ids: Sequence[int], blocks: Sequence[int]) -> Job:
    """Returns a job of which nothing is known but its tokens and blocks."""
    name = "selfcheck"
    return Job(
        request=EngineRequest(name, tuple(ids), SamplingParams()),
        owner=name,
        order=Order(0, 0),
        seed=0,
        stop_rule=StopRule(frozenset(), 1),
        submitted_s=0.0,
        on_event=lambda _: None,
        tokens=list(ids),
        blocks=array("q", blocks),
    )
