"""What the autoscaler asks of whatever starts and stops workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.autoscaler.state import Pool


class OrchestratorError(Exception):
    """It could not be asked or would not do it; tried again at the next look."""


@dataclass(frozen=True, slots=True)
class PoolReplicas:
    """What the orchestrator knows of one pool.

    `wanted` is the size it keeps the pool at, whoever set it. `failed` workers ended before they
    were ready or restart again and again; `problem` says what is known about it. `last_start_s` is
    how long the newest worker took to get ready, where that is known.
    """

    wanted: int
    failed: int = 0
    problem: str = ""
    last_start_s: float | None = None


class Orchestrator(Protocol):
    """Keeps two pools at the sizes that it is told. Sizes set by others are seen at `observe`.

    `moves` says whether workers can change pools; elsewhere a pool is a Deployment or a service of
    its own, and a worker that changed would be counted where it was.
    """

    name: str
    moves: bool

    async def observe(self) -> Mapping[Pool, PoolReplicas]:
        """Returns both pools as they are. Raises OrchestratorError."""
        ...

    async def scale(self, pool: Pool, replicas: int, victims: Sequence[str] = ()) -> None:
        """Asks for a size; returns before it is reached. Again changes nothing.

        `victims` are the workers that drain soonest, best first: a hint. Workers are asked to end
        by SIGTERM, upon which they drain. Raises OrchestratorError.
        """
        ...

    async def move(self, to: Pool, workers: Sequence[str]) -> None:
        """Moves ready workers of the other pool to a pool; returns before they are there.

        Both sizes change with them. Again changes nothing. Raises OrchestratorError.
        """
        ...

    async def close(self) -> None:
        """Hangs up."""
        ...
