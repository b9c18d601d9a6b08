"""What was offered to the mesh and what became of it, counted. Pure.

Counters only grow, so that two readings say what happened between them, whoever reads how often.
"""

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was offered to routers so far, and who waits now.

    `remote_*` are prompts with more uncached tokens than go remote, `local_*` the others; tokens
    are uncached ones. `output_tokens` and `context_tokens` (prompt plus half the answer) are sums
    over `finished` requests, `met` of the `ended` ones met their limits. Rejected requests were
    offered too and met nothing. `waiting_requests` is no counter: they wait for a permit now.
    """

    remote_requests: int = 0
    remote_tokens: int = 0
    local_requests: int = 0
    local_tokens: int = 0
    finished: int = 0
    output_tokens: int = 0
    context_tokens: int = 0
    ended: int = 0
    met: int = 0
    waiting_requests: int = 0

    @property
    def requests(self) -> int:
        """All requests."""
        return self.remote_requests + self.local_requests

    @property
    def tokens_per_request(self) -> float:
        """Mean uncached tokens of a prompt so far; 0 before the first."""
        return (self.remote_tokens + self.local_tokens) / max(1, self.requests)

    def plus(self, other: Self) -> Self:
        """Returns both together."""
        return type(self)(
            **{it.name: getattr(self, it.name) + getattr(other, it.name) for it in fields(self)}
        )

    def since(self, earlier: Self) -> Self:
        """Returns what happened after `earlier`; who waits is that of now."""
        return type(self)(
            **{
                it.name: getattr(self, it.name)
                - (0 if it.name == "waiting_requests" else getattr(earlier, it.name))
                for it in fields(self)
            }
        )
