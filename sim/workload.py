"""A request as a trace describes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from baton.requests import Priority


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request. `hashes` are its prompt's full blocks: equal hashes mean equal prefixes."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    priority: Priority = Priority.NORMAL
    tenant: str = ""


class Trace(Protocol):
    """A workload that can be replayed. `block_tokens` is the size of its hashed blocks."""

    @property
    def name(self) -> str:
        """Names the workload and where it is from."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens per block of `SimRequest.hashes`, and of the simulated pools."""
        ...

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """Yields the requests by time of arrival, `rate` times as fast as recorded.

        `seed` decides whatever the trace leaves open. Reads as it goes: memory stays bounded.
        """
        ...


@dataclass(frozen=True, slots=True)
class TraceOf:
    """What is made of another trace: its requests, changed or chosen by whoever inherits this."""

    trace: Trace

    @property
    def name(self) -> str:
        """See `Trace`."""
        return self.trace.name

    @property
    def block_tokens(self) -> int:
        """See `Trace`."""
        return self.trace.block_tokens
