"""Choosing tokens from logits.

The random draw of a token depends on the request's seed and the token's position alone. Together
with a filter and a draw that look at one row only, this makes a request continue with the same
tokens whatever else is in its batch and whichever worker it resumes on.
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


def uniform(seed: int, position: int) -> float:
    """Returns the draw in [0, 1) of the token at `position`."""
    return (xxhash.xxh3_64_intdigest(_DRAW.pack(seed & _MASK_64, position)) >> 11) * 2.0**-53


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
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    draw_at = _column([uniform(draw.seed, draw.position) for draw in draws], cumulative)
    # The factor keeps rounding from pointing behind the last possible token.
    target = draw_at.clamp(max=1.0 - 1e-12) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # A row of NaN points behind the vocabulary; it must not fail the others' next step.
    return chosen.clamp(max=wide.shape[1] - 1)


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
