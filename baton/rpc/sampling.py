"""Sampling parameters as a message and back; every request in the mesh carries them."""

from functools import lru_cache
from typing import Any

from baton.requests import SamplingParams
from baton.v1 import types_pb2

_SAMPLING_SCALARS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "logprobs",
)  # fmt: skip


def sampling_params(message: types_pb2.SamplingParams) -> SamplingParams:
    """Returns the parameters; what is not given takes the default."""
    return _read(message.SerializeToString())


@lru_cache(maxsize=256)
def _read(encoded: bytes) -> SamplingParams:
    message = types_pb2.SamplingParams.FromString(encoded)
    given: dict[str, Any] = {
        descriptor.name: value
        for descriptor, value in message.ListFields()
        if descriptor.name in _SAMPLING_SCALARS
    }
    return SamplingParams(
        **given, stop=tuple(message.stop), stop_token_ids=tuple(message.stop_token_ids)
    )


@lru_cache(maxsize=256)
def sampling_message(sampling: SamplingParams) -> types_pb2.SamplingParams:
    """Returns the parameters as a message, which is shared: copy it before changing it."""
    scalars: dict[str, Any] = {name: getattr(sampling, name) for name in _SAMPLING_SCALARS}
    return types_pb2.SamplingParams(
        **scalars, stop=sampling.stop, stop_token_ids=sampling.stop_token_ids
    )
