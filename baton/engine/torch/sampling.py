"""Choosing tokens from logits.

A token is drawn by the Gumbel-max method (Gumbel, "Statistical Theory of Extreme Values", 1954):
each token of the vocabulary gets a waiting time, exponential with the token's probability as its
rate, and the first wins. The times depend on the request's seed, the position and the token alone.
Together with a filter that looks at one row only, this makes a request continue with the same
tokens whatever else is in its batch and whichever worker it resumes on. Logits of another batch
shape differ in their last bits; then a winner changes only where two times nearly tie, while a
draw from cumulated probabilities would change at each of the vocabulary's borders.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import xxhash

from baton.requests import SamplingParams

_DRAW = struct.Struct("<QQ")
_MASK_64 = (1 << 64) - 1


def _signed(bits: int) -> int:
    """Returns 64 bits as the signed number that torch can multiply by."""
    return bits - (1 << 64) if bits >> 63 else bits


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST_MIX = _signed(0xBF58476D1CE4E5B9)
_SECOND_MIX = _signed(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row of logits becomes a token: `position` is the token's index in its sequence."""

    sampling: SamplingParams
    seed: int
    position: int


class Choice(NamedTuple):
    """A token, and the natural log of its unmodified probability if that was asked for."""

    token: int
    logprob: float | None


def uniform(draws: Sequence[Draw], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Returns the numbers in (0, 1) of each token at each draw, float64 [draws, vocabulary].

    A row's key is a hash of seed and position; its tokens are the steps of SplitMix64 from there
    (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
    """
    keys = torch.tensor([_key(draw) for draw in draws], device=device).unsqueeze(1)
    # In place: a vocabulary of 128k makes each copy a megabyte per row.
    bits = torch.arange(1, vocab_size + 1, device=device).mul_(_STEP) + keys
    scratch = torch.empty_like(bits)
    bits.bitwise_xor_(_shifted(bits, 30, scratch)).mul_(_FIRST_MIX)
    bits.bitwise_xor_(_shifted(bits, 27, scratch)).mul_(_SECOND_MIX)
    bits.bitwise_xor_(_shifted(bits, 31, scratch))
    return _shifted(bits, 11, scratch).double().add_(0.5).mul_(2.0**-53)


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """Returns one choice per row of `logits` [rows, vocabulary]."""
    tokens = logits.argmax(dim=-1)
    random_rows = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if random_rows:
        rows = torch.tensor(random_rows, device=logits.device)
        tokens[rows] = _sample(logits[rows], [draws[row] for row in random_rows])
    if not any(draw.sampling.logprobs for draw in draws):
        return [Choice(token, None) for token in tokens.tolist()]
    logprobs = _logprobs(logits, tokens)
    return [
        Choice(token, logprob if draw.sampling.logprobs else None)
        for token, logprob, draw in zip(tokens.tolist(), logprobs, draws, strict=True)
    ]


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    wide = logits.float()
    chosen = wide.gather(1, tokens.unsqueeze(1)).squeeze(1) - wide.logsumexp(dim=-1)
    values: list[float] = chosen.tolist()
    return values


def _sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    wide = logits.float()
    # The largest logit becomes 0 first, so that a tiny temperature cannot overflow.
    wide = wide - wide.amax(dim=-1, keepdim=True)
    probabilities = (wide / _column([d.sampling.temperature for d in draws], wide)).softmax(dim=-1)
    filtered = [row for row, draw in enumerate(draws) if _is_filtered(draw.sampling, wide.shape[1])]
    if filtered:
        rows = torch.tensor(filtered, device=wide.device)
        probabilities[rows] = _filter(
            probabilities[rows], [draws[row].sampling for row in filtered]
        )
    waits = uniform(draws, wide.shape[1], wide.device).log_().neg_()
    return waits.reciprocal_().mul_(probabilities).argmax(dim=-1)


def _key(draw: Draw) -> int:
    packed = _DRAW.pack(draw.seed & _MASK_64, draw.position)
    return _signed(xxhash.xxh3_64_intdigest(packed))


def _shifted(bits: torch.Tensor, count: int, out: torch.Tensor) -> torch.Tensor:
    # torch shifts copies of the sign in; the mask takes them out again.
    return torch.bitwise_right_shift(bits, count, out=out).bitwise_and_((1 << (64 - count)) - 1)


def _is_filtered(sampling: SamplingParams, vocab_size: int) -> bool:
    has_top_k = sampling.top_k is not None and 0 < sampling.top_k < vocab_size
    return has_top_k or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _filter(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Zeroes what top-k, then top-p of the rest, then min-p exclude."""
    vocab_size = probabilities.shape[1]
    limits = [p.top_k or vocab_size for p in params]
    widest = min(max(limits), vocab_size)
    ordered, index = probabilities.topk(widest, dim=-1)
    rank = torch.arange(widest, device=probabilities.device)
    ordered = ordered * (rank < torch.tensor(limits, device=rank.device).unsqueeze(1))
    before = ordered.cumsum(dim=-1) - ordered
    keep = before < _column([p.top_p for p in params], ordered) * ordered.sum(dim=-1, keepdim=True)
    keep &= ordered >= _column([p.min_p for p in params], ordered) * ordered[:, :1]
    keep[:, 0] = True
    return torch.zeros_like(probabilities).scatter_(1, index, ordered * keep)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
