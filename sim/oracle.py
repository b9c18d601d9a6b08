"""Was it the best placement? Asked at each decision, answered from the simulator's true state.

A candidate is either a prefill worker that computes for the chosen decode worker, or a decode
worker that computes itself. Its TTFT is predicted from what no router knows exactly: all prompt
tokens still to be computed there with their true caches, the step under way, the running decodes,
and the request's own uncached tokens there. A decision agrees when the TTFT predicted so for the
placement that was executed is at most 5 % above the least of all candidates.
"""

from dataclasses import dataclass

from sim.engine.links import LinkSpec
from sim.engine.worker import SimWorker
from sim.observe import Role
from sim.roster import Roster
from sim.workload import SimRequest

TOLERANCE = 1.05


@dataclass(slots=True)
class Agreement:
    """How many decisions were asked about, and how many were among the best."""

    decisions: int = 0
    agreed: int = 0

    @property
    def share(self) -> float | None:
        """The share of decisions that agreed; None before the first."""
        return self.agreed / self.decisions if self.decisions else None


class Oracle:
    """Judges placements on one fleet."""

    def __init__(self, roster: Roster, link: LinkSpec, kv_bytes_per_token: int) -> None:
        self.agreement = Agreement()
        self._roster = roster
        self._link = link
        self._kv_bytes = kv_bytes_per_token

    def judge(
        self, now_s: float, request: SimRequest, decode: SimWorker, chosen: SimWorker
    ) -> None:
        """Counts one executed placement; `chosen` computes the prompt for `decode`."""
        own = decode.pool.match(request.hashes, request.prompt_tokens)
        prefill = self._roster.of(Role.PREFILL)
        remote = [self.remote_s(now_s, request, it.worker, own) for it in prefill]
        decodes = self._roster.of(Role.DECODE, Role.AGGREGATED)
        local = [self.local_s(now_s, request, it.worker) for it in decodes]
        if chosen is decode:
            actual_s = self.local_s(now_s, request, chosen)
        else:
            actual_s = self.remote_s(now_s, request, chosen, own)
        self.agreement.decisions += 1
        self.agreement.agreed += actual_s <= TOLERANCE * min(remote + local)

    def local_s(self, now_s: float, request: SimRequest, worker: SimWorker) -> float:
        """Returns the TTFT when `worker` computes the prompt itself, after all it has to do."""
        cached = worker.pool.match(request.hashes, request.prompt_tokens)
        uncached = request.prompt_tokens - cached
        sequences = worker.decoding
        room = max(1, worker.token_budget - sequences)
        steps = -(-(worker.backlog_tokens + uncached) // room)
        base_s = worker.costs.mixed_base_s(sequences, worker.resident_tokens)
        total_s = (
            steps * base_s + worker.backlog_marginal_s + worker.costs.tokens_s(uncached, cached)
        )
        if worker.backlog_tokens and worker.step_started_s is not None:
            # The step under way is part of the backlog until it ends.
            total_s -= now_s - worker.step_started_s
        return total_s

    def remote_s(
        self, now_s: float, request: SimRequest, worker: SimWorker, at_decode: int
    ) -> float:
        """Returns the TTFT through a prefill worker: what transfer adds overlaps but for its end.

        `at_decode` tokens are on the decode worker already and need no transfer.
        """
        computed_s = self.local_s(now_s, request, worker)
        moved = max(0, request.prompt_tokens - at_decode)
        per_token_s = self._kv_bytes / self._link.bandwidth
        cached = worker.pool.match(request.hashes, request.prompt_tokens)
        alone_s = worker.costs.prefill_s(
            request.prompt_tokens - cached, cached, worker.token_budget
        )
        tail_s = min(moved, worker.token_budget) * per_token_s
        return computed_s + max(tail_s, moved * per_token_s - alone_s) + self._link.latency_s
