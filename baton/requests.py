"""A generation request as every service sees it after the door checked it."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Priority(enum.IntEnum):
    """How urgent a request is; the numbers are those of the proto."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class FinishReason(enum.IntEnum):
    """Why a generation ended; the numbers are those of the proto."""

    STOP = 1
    LENGTH = 2


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; all values are in range (the router checked them).

    `temperature` 0 is greedy. `seed` makes the token at each position repeatable on any worker.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine needs to compute a prompt and generate from it.

    `input_ids` is the prompt followed by `resumed_tokens` tokens that an earlier worker already
    generated; `sampling.max_tokens` counts from the end of `input_ids`.
    """

    request_id: str
    input_ids: Sequence[int]
    sampling: SamplingParams
    priority: Priority = Priority.NORMAL
    cache_salt: str = ""
    resumed_tokens: int = 0
    traceparent: str = ""
    """For engines that trace themselves."""
