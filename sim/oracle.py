"""Was it the best placement? Asked at some decisions, answered from the simulator's true state.

The oracle has the mesh's own goal, TTFT plus priced TPOT, and knows what no router knows: all
prompt tokens still to be computed on each worker with their true caches, the step under way, how
far each running stream is and how long its answer will be. A placement costs

    its TTFT + price * (its own step time on the decode worker
                        + for a prompt computed among streams, what each of them is late by,
                          spread over the length of its answer)

and the oracle takes the least over all prefill workers, with the best decode worker for each, and
all decode workers by themselves. A decision agrees when both its TTFT and its TPOT, what the others
are late by included, are at most 5 % above those of the oracle's placement. `agreed_by_ttft` counts
decisions whose TTFT is at most 5 % above the least TTFT of all, whatever that does to TPOT.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sim.engine.links import LinkSpec
from sim.engine.worker import SimWorker
from sim.observe import Role
from sim.roster import Roster
from sim.views import Sight
from sim.workload import SimRequest

TOLERANCE = 1.05

_DECODES = (Role.DECODE, Role.AGGREGATED)


@dataclass(slots=True)
class Agreement:
    """How many decisions were asked about, and how many were among the best."""

    decisions: int = 0
    agreed: int = 0
    agreed_by_ttft: int = 0

    @property
    def share(self) -> float | None:
        """The share of decisions that agreed; None before the first."""
        return self.agreed / self.decisions if self.decisions else None


class Placed(NamedTuple):
    """What a placement takes, in seconds."""

    ttft_s: float
    tpot_s: float

    def is_close_to(self, best: "Placed") -> bool:
        """Returns whether this is hardly worse."""
        return self.ttft_s <= TOLERANCE * best.ttft_s and self.tpot_s <= TOLERANCE * best.tpot_s


class Oracle:
    """Judges placements on one fleet. `tpot_price` is in seconds of TTFT per second of TPOT."""

    def __init__(
        self, roster: Roster, link: LinkSpec, kv_bytes_per_token: int, tpot_price: float
    ) -> None:
        self.agreement = Agreement()
        self._price = tpot_price
        self._roster = roster
        self._link = link
        self._kv_bytes = kv_bytes_per_token
        self._expected: dict[str, int] = {}

    def judge(self, now_s: float, request: SimRequest, decode: Sight, chosen: Sight) -> None:
        """Counts one executed placement; `chosen` computes the prompt for `decode`."""
        self._expected = {it.name: it.reserved for it in self._roster.of(*_DECODES)}
        if chosen is decode:
            actual = self.alone(now_s, request, decode)
        else:
            # The decode worker holds room for this very request.
            self._expected[decode.name] -= 1
            actual = self.pair(now_s, request, chosen, decode)
        candidates = list(self._candidates(now_s, request))
        best = min(candidates, key=lambda it: it.ttft_s + self._price * it.tpot_s)
        fastest_s = min(it.ttft_s for it in candidates)
        agreement = self.agreement
        agreement.decisions += 1
        agreement.agreed += actual.is_close_to(best)
        agreement.agreed_by_ttft += actual.ttft_s <= TOLERANCE * fastest_s

    def _candidates(self, now_s: float, request: SimRequest) -> Iterator[Placed]:
        for sight in self._roster.of(*_DECODES):
            yield self.alone(now_s, request, sight)
        receiving = self._roster.of(Role.DECODE)
        if not receiving:
            return
        # What of the transfer is not hidden depends on both, but hardly: each side is taken alone.
        decode = min(receiving, key=lambda sight: self._receive_s(request, sight))
        for sight in self._roster.of(Role.PREFILL):
            yield self.pair(now_s, request, sight, decode)

    def alone(self, now_s: float, request: SimRequest, decode: Sight) -> Placed:
        """Returns what computing the prompt where it will be decoded takes."""
        worker = decode.worker
        ttft_s = self.local_s(now_s, request, worker)
        cached = worker.pool.match(request.hashes, request.prompt_tokens)
        uncached = request.prompt_tokens - cached
        steps = max(1, -(-uncached // worker.token_budget))
        stall_s = worker.costs.tokens_s(uncached, cached)
        late_s = sum(
            min(1.0, left / steps) * stall_s / max(1, length - 1)
            for length, left in worker.streams()
        )
        return Placed(ttft_s, self._step_s(request, decode) + late_s)

    def pair(self, now_s: float, request: SimRequest, prefill: Sight, decode: Sight) -> Placed:
        """Returns what computing on one worker and decoding on another takes."""
        at_decode = decode.worker.pool.match(request.hashes, request.prompt_tokens)
        ttft_s = self.remote_s(now_s, request, prefill.worker, at_decode)
        return Placed(ttft_s, self._step_s(request, decode))

    def _receive_s(self, request: SimRequest, decode: Sight) -> float:
        """Returns what a decode worker adds to the cost of any pair."""
        pool = decode.worker.pool
        moved = request.prompt_tokens - pool.match(request.hashes, request.prompt_tokens)
        tail_s = min(moved, decode.worker.token_budget) * self._kv_bytes / self._link.bandwidth
        return tail_s + self._price * self._step_s(request, decode)

    def _step_s(self, request: SimRequest, decode: Sight) -> float:
        """Returns the step's time once those are in that are awaited there, and the request."""
        worker, expected = decode.worker, self._expected[decode.name]
        pool = worker.pool
        resident = (pool.total - pool.available) * pool.block_tokens + request.prompt_tokens
        return worker.costs.decode_s(worker.decoding + expected + 1, resident)

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
            total_s -= min(now_s - worker.step_started_s, base_s)
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
