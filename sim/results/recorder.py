"""Collects outcomes as they come, in flat arrays: some forty bytes a request."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

from baton.requests import Priority
from sim.outcome import Ending, Outcome


@dataclass(frozen=True, slots=True)
class Slo:
    """The limits that a request has to meet, both of them, in seconds."""

    ttft_s: float
    tpot_s: float


@dataclass(slots=True)
class ClassRecord:
    """What became of the requests of one class."""

    offered: int = 0
    met: int = 0
    ttft_s: "array[float]" = field(default_factory=lambda: array("d"))
    tpot_s: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, outcome: Outcome, slo: Slo) -> None:
        """Takes one outcome in."""
        self.offered += 1
        self.met += outcome.meets(slo.ttft_s, slo.tpot_s)
        if outcome.ttft_s is not None:
            self.ttft_s.append(outcome.ttft_s)
        if outcome.tpot_s is not None:
            self.tpot_s.append(outcome.tpot_s)


@dataclass(slots=True)
class Recorder:
    """All outcomes of one run. Prompts over `long_above` tokens are long, the others short."""

    slo: Slo
    long_above: int
    everyone: ClassRecord = field(default_factory=ClassRecord)
    classes: dict[str, ClassRecord] = field(default_factory=dict)
    rejections: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    arrivals_s: "array[float]" = field(default_factory=lambda: array("d"))
    rejected_s: "array[float]" = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    vain_tokens: int = 0
    tpot_missed: int = 0
    ttft_missed: int = 0
    long_served: int = 0
    long_remote: int = 0
    first_s: float | None = None
    last_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Takes one outcome in."""
        request = outcome.request
        self.arrivals_s.append(request.arrival_s)
        self.last_s = max(self.last_s, request.arrival_s)
        self.first_s = min(self.last_s if self.first_s is None else self.first_s, request.arrival_s)
        is_long = request.prompt_tokens > self.long_above
        self.everyone.add(outcome, self.slo)
        for name in self._names(request.priority, is_long=is_long):
            self.classes.setdefault(name, ClassRecord()).add(outcome, self.slo)
        if outcome.ending is Ending.REJECTED:
            self.rejections[outcome.reason] += 1
            self.rejected_s.append(request.arrival_s)
            return
        self.reasons[outcome.reason] += 1
        self.prompt_tokens += request.prompt_tokens
        self.cached_tokens += outcome.cached_tokens
        self.vain_tokens += outcome.vain_tokens
        self.ttft_missed += (outcome.ttft_s or 0.0) > self.slo.ttft_s
        self.tpot_missed += (outcome.tpot_s or 0.0) > self.slo.tpot_s
        self.long_served += is_long
        self.long_remote += is_long and outcome.is_remote

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.last_s - (self.first_s or 0.0)

    def _names(self, priority: Priority, *, is_long: bool) -> tuple[str, ...]:
        length = "long" if is_long else "short"
        return (length,) if priority is Priority.NORMAL else (length, priority.name.lower())
