"""One request on one worker."""

import enum

from sim.engine.pool import Lease
from sim.workload import SimRequest

Order = tuple[int, int]
"""Negated priority, then arrival: smaller goes first."""


class Phase(enum.Enum):
    """Where a job stands on its worker."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    ENDED = "ended"


class Job:
    """A prompt to compute, and unless `is_only_prefill` the tokens to generate after it.

    `tokens` are the prompt and what was generated when the job last changed; while it decodes,
    `joined_step` says since which step of its worker they grow by one per step.
    """

    __slots__ = (
        "backlog_pairs",
        "backlog_tokens",
        "cached",
        "computed",
        "first_scheduled_s",
        "is_only_prefill",
        "joined_step",
        "lease",
        "left",
        "milestone",
        "order",
        "owner",
        "phase",
        "prefilled_tokens",
        "request",
        "table_blocks",
        "tokens",
    )

    def __init__(
        self, request: SimRequest, order: Order, owner: object, *, is_only_prefill: bool
    ) -> None:
        self.request = request
        self.order = order
        self.owner = owner
        self.is_only_prefill = is_only_prefill
        self.tokens = request.prompt_tokens
        self.left = request.output_tokens
        self.computed = 0
        self.cached = 0
        self.prefilled_tokens = 0
        self.table_blocks = 0
        self.lease: Lease | None = None
        self.phase = Phase.WAITING
        self.joined_step = 0
        self.milestone = 0
        self.first_scheduled_s: float | None = None
        self.backlog_pairs = 0.0
        self.backlog_tokens = 0

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return self.tokens - self.computed

    def __lt__(self, other: "Job") -> bool:
        return self.order < other.order
