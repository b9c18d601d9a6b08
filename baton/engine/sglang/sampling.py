"""Sampling parameters as SGLang takes them, each one mapped or refused by name. Pure."""

from typing import Any

from baton.errors import InvalidRequestError
from baton.requests import SamplingParams

WHOLE_VOCABULARY = -1


def sampling_arguments(sampling: SamplingParams, *, can_seed: bool) -> dict[str, Any]:
    """Returns SGLang's `sampling_params`.

    Stop strings are the router's: the engine sees token ids only. Raises InvalidRequestError for a
    seed that the engine would ignore.
    """
    if sampling.seed is not None and sampling.temperature > 0 and not can_seed:
        raise InvalidRequestError(
            "this fleet's SGLang ignores seeds: set engine.sglang.enable_deterministic_inference, "
            "or leave the seed out",
            reason="SEED_UNSUPPORTED",
            field="sampling_params.seed",
        )
    arguments: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": WHOLE_VOCABULARY if sampling.top_k is None else sampling.top_k,
        "min_p": sampling.min_p,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.seed is not None and can_seed:
        arguments["sampling_seed"] = _signed(sampling.seed)
    return arguments


def _signed(seed: int) -> int:
    """Returns a seed of 64 bits as SGLang takes it, which is signed."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed
