"""What controllers and admission may see of a running simulation: its true state, at one moment."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from baton.requests import Priority
from sim.engine.events import EventLoop
from sim.workload import SimRequest

if TYPE_CHECKING:
    from sim.fleet import FleetSpec


class Role(enum.StrEnum):
    """What a simulated worker does."""

    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker now.

    `backlog_s` is what the prompt tokens in its queue and under way take, without the constants of
    steps. `busy_s` and `prefilled_tokens` count since it joined at `joined_s`, so differences of
    two observations are what happened between. `awaited` prompts are computed elsewhere for it, or
    by it for others.
    """

    name: str
    role: Role
    joined_s: float
    is_draining: bool
    queued: int
    prefilling: int
    decoding: int
    awaited: int
    queued_tokens: int
    backlog_s: float
    resident_tokens: int
    kv_tokens: int
    kv_owned_tokens: int
    busy_s: float
    prefilled_tokens: int
    decoded_tokens: int


@dataclass(frozen=True, slots=True)
class Observation:
    """The mesh at `now_s`. The counts of requests are totals since the start.

    `starting` are workers by role that were added and are not ready yet.
    """

    now_s: float
    workers: tuple[WorkerState, ...]
    starting: tuple[Role, ...]
    offered: int
    rejected: int
    served: int
    waiting: int

    def of(self, *roles: Role) -> list[WorkerState]:
        """Returns the workers of some roles that take new work."""
        return [it for it in self.workers if it.role in roles and not it.is_draining]

    def pending(self, *roles: Role) -> int:
        """Returns how many workers of some roles are starting."""
        return sum(role in roles for role in self.starting)


class Stage(enum.Enum):
    """How far a live request is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """A request in the mesh. No service knows `output_tokens` before the end; the simulator does.

    `prompt_left_tokens` are still to be computed, `generated_tokens` are out. `prefill_worker`
    computes the prompt, which may be the decode worker; both are empty before the placement.
    """

    arrival_s: float
    priority: Priority
    tenant: str
    stage: Stage
    prompt_tokens: int
    prompt_left_tokens: int
    output_tokens: int
    generated_tokens: int
    first_token_s: float | None
    prefill_worker: str
    decode_worker: str


class MeshState(Protocol):
    """The simulated mesh as admission and controllers read it."""

    @property
    def loop(self) -> EventLoop:
        """The run's clock and events."""
        ...

    @property
    def spec(self) -> "FleetSpec":
        """What the workers are."""
        ...

    def observe(self) -> Observation:
        """Returns the state of all workers; its cost grows with their number."""
        ...

    def live_requests(self) -> Iterator[LiveRequest]:
        """Yields the requests that have not ended, by arrival."""
        ...

    def cached_tokens(self, request: SimRequest) -> int:
        """Returns the most tokens of a prompt that any worker holds, as routers know it."""
        ...
