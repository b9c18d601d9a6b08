"""The requests that this router runs and the last ones that it ran, for people who watch it."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from opentelemetry.context import Context

from baton.requests import Priority
from baton.rpc.status import duration
from baton.v1 import router_pb2, types_pb2
from services.router import timing
from services.router.answer import Answer, Figures
from services.router.generation import Generation
from services.router.slo import WINDOWS, SloTracker

MAX_ENDED = 512
"""Ended requests that are kept; older ones are forgotten."""

CANCELLED = "CANCELLED"
BUG = "INTERNAL"


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in as it goes. `error_type` is empty when it ended well.

    `arrived_s` is at the router's own clock, `arrived_at_s` in seconds since 1970.
    """

    operation: str
    arrived_s: float
    arrived_at_s: float = field(default_factory=time.time)
    request_id: str = ""
    priority: Priority | None = None
    tenant: str = ""
    trace_id: str = ""
    exemplar: Context | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    verdict: str = ""
    generation: Generation | None = None
    answer: Answer | None = None
    figures: Figures | None = None
    error_type: str = ""

    @property
    def priority_name(self) -> str:
        """The priority in lower case; empty before it is known."""
        return self.priority.name.lower() if self.priority is not None else ""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request should take, in seconds, unless it says otherwise."""

    ttft_s: float
    tpot_s: float

    def outcome(self, record: RequestRecord) -> str:
        """Returns "met", or what was missed first: "failed", "ttft" or "tpot"."""
        if record.error_type or record.figures is None:
            return "failed"
        if not self.met_ttft(record):
            return "ttft"
        return "met" if self.met_tpot(record) else "tpot"

    def met_ttft(self, record: RequestRecord) -> bool:
        """Tells whether the first token came in time."""
        target_s = self.ttft_s if record.ttft_slo_s is None else record.ttft_slo_s
        return record.figures is not None and record.figures.ttft_s <= target_s

    def met_tpot(self, record: RequestRecord) -> bool:
        """Tells whether the tokens after it came in time; a single token has no pace to miss."""
        target_s = self.tpot_s if record.tpot_slo_s is None else record.tpot_slo_s
        return record.figures is not None and (record.figures.tpot_s or 0.0) <= target_s


class RequestBook:
    """Knows the running requests, keeps a bounded number of ended ones, and counts attainment."""

    def __init__(
        self,
        targets: Targets,
        limit: int = MAX_ENDED,
        on_served: Callable[[RequestRecord], None] = lambda record: None,
        tenants: Collection[str] = (),
    ) -> None:
        self.targets = targets
        self._on_served = on_served
        self.slo = SloTracker(tenants)
        self._running: dict[int, RequestRecord] = {}
        self._ended: deque[tuple[RequestRecord, str]] = deque(maxlen=limit)
        self._offered: dict[Priority, int] = {}
        self._met: dict[Priority, int] = {}

    def started(self, record: RequestRecord) -> None:
        """Takes a request that arrived."""
        self._running[id(record)] = record

    def ended(self, record: RequestRecord) -> str:
        """Takes its end. Returns the outcome against its targets; empty for a client's own end."""
        self._running.pop(id(record), None)
        outcome = "" if record.error_type == CANCELLED else self.targets.outcome(record)
        if record.generation is not None:
            if not record.error_type:
                self._on_served(record)
            record.generation.forget_content()
        self._ended.appendleft((record, outcome))
        priority = record.priority or Priority.NORMAL
        if outcome:
            self._offered[priority] = self._offered.get(priority, 0) + 1
            self._met[priority] = self._met.get(priority, 0) + (outcome == "met")
        if outcome and record.generation is not None:
            # What was wrong to ask for is nobody's broken promise.
            self.slo.add(
                time.monotonic(),
                priority,
                record.tenant,
                met_ttft=self.targets.met_ttft(record),
                met_tpot=self.targets.met_tpot(record),
            )
        return outcome

    @property
    def waiting(self) -> int:
        """Requests that wait for their permit now."""
        stages = map(stage, self._running.values())
        return sum(each == router_pb2.REQUEST_STAGE_ADMISSION for each in stages)

    def newest(self, limit: int) -> Iterator[router_pb2.RequestSummary]:
        """Yields running requests, then ended ones, both newest first."""
        running = list(self._running.values())[::-1][:limit]
        yield from (summary(record, None) for record in running)
        ended = itertools.islice(self._ended, limit - len(running))
        yield from (summary(record, outcome) for record, outcome in ended)

    def recent_attainment(self) -> list[router_pb2.SloAttainment]:
        """Returns the shares per class and tenant over sliding windows."""
        return [
            router_pb2.SloAttainment(
                priority=types_pb2.Priority.ValueType(found.priority),
                tenant=found.tenant,
                window=duration(WINDOWS[found.window]),
                requests=found.requests,
                ttft_attainment=found.ttft,
                tpot_attainment=found.tpot,
                attainment=found.both,
                burn_rate=found.burn_rate,
            )
            for found in self.slo.attainments(time.monotonic())
        ]

    def attainment(self) -> list[router_pb2.AttainmentCount]:
        """Returns the counts by priority since the start."""
        return [
            router_pb2.AttainmentCount(
                priority=types_pb2.Priority.ValueType(priority),
                offered=offered,
                met=self._met.get(priority, 0),
            )
            for priority, offered in sorted(self._offered.items())
        ]


def stage(record: RequestRecord) -> router_pb2.RequestStage.ValueType:
    """Returns how far a running request got."""
    if record.generation is None:
        return router_pb2.REQUEST_STAGE_TOKENIZE
    if record.answer is None:
        return router_pb2.REQUEST_STAGE_ADMISSION
    if not record.generation.tokens:
        return router_pb2.REQUEST_STAGE_PREFILL
    return router_pb2.REQUEST_STAGE_DECODE


def summary(record: RequestRecord, outcome: str | None) -> router_pb2.RequestSummary:
    """Returns a request in a few numbers; `outcome` is None while it runs."""
    generation, answer, figures = record.generation, record.answer, record.figures
    message = router_pb2.RequestSummary(
        request_id=record.request_id,
        stage=stage(record) if outcome is None else router_pb2.REQUEST_STAGE_ENDED,
        priority=types_pb2.Priority.ValueType(record.priority or Priority.NORMAL),
        tenant=record.tenant,
        admission_verdict=record.verdict,
        error_type=record.error_type if outcome is not None else "",
        met_targets=outcome == "met" if outcome else None,
        trace_id=record.trace_id,
    )
    message.arrived_at.FromNanoseconds(round(record.arrived_at_s * 1e9))
    if generation is not None:
        _describe(message, generation, answer)
    if figures is not None:
        message.timing.CopyFrom(timing.breakdown(figures.parts_ns, figures.tpot_s, figures.total_s))
    return message


def _describe(
    message: router_pb2.RequestSummary, generation: Generation, answer: Answer | None
) -> None:
    message.usage.prompt_tokens = len(generation.input_ids)
    message.usage.completion_tokens = len(generation.tokens)
    decision = generation.decision
    if decision is None:
        return
    message.policy = decision.policy
    if answer is not None:
        message.usage.cached_tokens = answer.cached_tokens
        message.placement.CopyFrom(answer.placement())
    if decision.chosen is not None:
        message.predicted_ttft.CopyFrom(duration(decision.chosen.terms.ttft_s))
