"""Degrading before rejecting: steps that a class climbs with its load, and comes down later. Pure.

Each step makes a request cheaper: a shorter answer, a prompt computed where the stream will run, a
place behind others on the workers. Every step taken is named in the response.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from baton.requests import Priority

MAX_TOKENS_CAPPED = "MAX_TOKENS_CAPPED"
LOCAL_PREFILL_PREFERRED = "LOCAL_PREFILL_PREFERRED"
CLASS_LOWERED = "CLASS_LOWERED"

CAP_QUANTILE = 0.9
"""Answers are capped at the length that this share of the class's answers does not exceed."""

LEAST_CAP_TOKENS = 64

DOWN = 0.1
"""A step is undone when the load has fallen this far below where it was taken."""

HOLD_S = 1.0
"""A step holds at least so long."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rung: what it does, from which load on."""

    name: str
    from_load: float


LADDERS: Mapping[Priority, tuple[Step, ...]] = MappingProxyType(
    {
        Priority.LOW: (Step(MAX_TOKENS_CAPPED, 0.7), Step(LOCAL_PREFILL_PREFERRED, 0.8)),
        Priority.NORMAL: (
            Step(MAX_TOKENS_CAPPED, 0.8),
            Step(LOCAL_PREFILL_PREFERRED, 0.9),
            Step(CLASS_LOWERED, 0.95),
        ),
        Priority.HIGH: (),
    }
)
"""Per class, least painful first. Low has no class below it, and high is never degraded."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """What a request has to put up with; nothing by default."""

    max_tokens: int | None = None
    prefers_local_prefill: bool = False
    priority: Priority | None = None
    names: tuple[str, ...] = ()


UNDEGRADED = Degradation()


@dataclass(slots=True)
class _Rung:
    level: int = 0
    since_s: float = 0.0


class Ladder:
    """Where each class stands on its ladder."""

    def __init__(self) -> None:
        self._rungs = {priority: _Rung() for priority in Priority}

    def level(self, priority: Priority) -> int:
        """Returns how many steps a class has taken."""
        return self._rungs[priority].level

    @property
    def is_down(self) -> bool:
        """True while no class is degraded."""
        return not any(rung.level for rung in self._rungs.values())

    def degrade(
        self, now_s: float, priority: Priority, load: float, max_tokens: int, usual_tokens: int
    ) -> Degradation:
        """Returns what a request of this class that found this load puts up with.

        `usual_tokens` is what CAP_QUANTILE of the class's answers do not exceed.
        """
        steps = LADDERS[priority][: self._climb(now_s, priority, load)]
        names = {step.name for step in steps}
        cap = max(usual_tokens, LEAST_CAP_TOKENS)
        if max_tokens <= cap:
            # It asks for less than it would be cut to, so nothing is taken from it.
            names.discard(MAX_TOKENS_CAPPED)
        return Degradation(
            max_tokens=cap if MAX_TOKENS_CAPPED in names else None,
            prefers_local_prefill=LOCAL_PREFILL_PREFERRED in names,
            priority=Priority(priority - 1) if CLASS_LOWERED in names else None,
            names=tuple(step.name for step in steps if step.name in names),
        )

    def _climb(self, now_s: float, priority: Priority, load: float) -> int:
        rung, steps = self._rungs[priority], LADDERS[priority]
        wanted = sum(load >= step.from_load for step in steps)
        if wanted > rung.level:
            rung.level, rung.since_s = wanted, now_s
        elif now_s - rung.since_s >= HOLD_S:
            kept = sum(load >= step.from_load - DOWN for step in steps)
            if kept < rung.level:
                # One step at a time: the next one down has its own hold.
                rung.level, rung.since_s = rung.level - 1, now_s
        return rung.level
