"""What workers do with a placed request: split, reservation, prefill, transfer, first token.

Each hop between two workers is an event of its own, and what they decide by is the decode worker's
own policy.
"""

from functools import partial
from typing import Protocol

from baton.state.prefix_index import PrefixIndex
from services.decode.policy import SplitReason
from sim.engine.events import EventLoop
from sim.engine.job import Job
from sim.engine.links import Network, Transfer
from sim.fleet import FleetSpec
from sim.flight import Flight
from sim.observe import Role
from sim.outcome import Ending
from sim.outlook import outlook
from sim.policies import MeshTiming, Policies
from sim.results.recorder import Slo
from sim.roster import Roster
from sim.views import Sight

PROMISE_BROKEN = "PROMISE_BROKEN"
LOCAL_ONLY = "AGGREGATED"


class Upstream(Protocol):
    """The router and the door, as workers see them."""

    def refused(self, flight: Flight, decode: Sight) -> None:
        """A decode worker has no room or drains; the request is to be placed again."""
        ...

    def computing(self, flight: Flight, on: Sight) -> None:
        """The prompt is about to be queued on a worker."""
        ...

    def answered(self, flight: Flight) -> None:
        """The first token is there."""
        ...

    def resized(self) -> None:
        """A worker joined, drains or left."""
        ...

    def ended(self, flight: Flight, ending: Ending, reason: str) -> None:
        """The request is over."""
        ...


class Execution:
    """Carries placed requests out on the workers of a roster, and hears what these tell."""

    def __init__(
        self,
        loop: EventLoop,
        spec: FleetSpec,
        policies: Policies,
        timing: MeshTiming,
        block_tokens: int,
        index: PrefixIndex,
        upstream: Upstream,
        strict: Slo | None,
    ) -> None:
        self._loop = loop
        self._spec = spec
        self._policies = policies
        self._timing = timing
        self._block_tokens = block_tokens
        self._upstream = upstream
        self._strict = strict
        self._network = Network(loop, spec.link)
        self.roster = Roster(
            spec, block_tokens, loop, index, self, policies.routing, upstream.resized
        )

    # --- the decode worker

    def start(self, flight: Flight) -> None:
        """The request is at its decode worker, which decides where to compute the prompt."""
        decode, decision = flight.decode, flight.decision
        assert decode is not None
        assert decision is not None
        decode.arrived(flight.local_tokens)
        if decode.is_draining:
            self._refuse(flight, decode)
            return
        if decode.role is Role.AGGREGATED:
            flight.reason = LOCAL_ONLY
        else:
            prompt_tokens = flight.request.prompt_tokens
            split = self._policies.split.decide(
                prompt_tokens,
                decode.worker.pool.match(flight.request.hashes, prompt_tokens),
                [view.queue_length for view in decision.prefill_candidates],
                outlook(decode, decision, prompt_tokens, self._spec.hardware.kv_bytes_per_token),
            )
            flight.reason = split.reason
            flight.candidates = iter(split.candidates)
        self._try_next(flight)

    def _try_next(self, flight: Flight) -> None:
        """Asks the next prefill worker, or computes the prompt here when none is left."""
        decode, decision, request = flight.decode, flight.decision, flight.request
        assert decode is not None
        assert decision is not None
        candidate = next(flight.candidates, None)
        if candidate is None:
            self._settle_credit(flight)
            if self._breaks_promise(decode, flight):
                self._upstream.ended(flight, Ending.REJECTED, PROMISE_BROKEN)
                return
            self._upstream.computing(flight, decode)
            flight.local_job = Job(request, flight.order, flight, is_only_prefill=False)
            decode.worker.submit(flight.local_job)
            return
        lease = decode.worker.pool.reserve(request.hashes, request.prompt_tokens)
        if lease is None:
            self._refuse(flight, decode)
            return
        flight.lease = lease
        flight.at_decode = lease.pinned * self._block_tokens
        name = decision.prefill_candidates[candidate].worker_id
        flight.prefill = self.roster.sights.get(name)
        decode.reserve()
        self._loop.after(self._timing.hop_s, self._at_prefill, flight)

    # --- the prefill worker

    def _at_prefill(self, flight: Flight) -> None:
        decode, prefill = flight.decode, flight.prefill
        assert decode is not None
        self._settle_credit(flight)
        if prefill is None or self._is_full(prefill):
            self._loop.after(self._timing.hop_s, self._declined, flight)
            return
        self._upstream.computing(flight, prefill)
        prefill.reserve()
        flight.transfer = Transfer(
            prefill.worker.index, decode.worker.index, partial(self._drained, flight)
        )
        flight.pushed = flight.at_decode
        flight.remote_job = Job(flight.request, flight.order, flight, is_only_prefill=True)
        prefill.worker.submit(flight.remote_job)

    def _is_full(self, prefill: Sight) -> bool:
        waiting = prefill.reserved - prefill.worker.prefilling
        return prefill.is_draining or waiting >= self._policies.prefill_queue_max

    def _declined(self, flight: Flight) -> None:
        assert flight.decode is not None
        assert flight.lease is not None
        flight.decode.worker.pool.release(flight.lease)
        flight.lease = None
        flight.decode.reserve(-1)
        flight.reason = SplitReason.PREFILL_QUEUE_FULL
        flight.decode.worker.wake()
        self._try_next(flight)

    def _settle_credit(self, flight: Flight) -> None:
        if flight.credited is not None:
            flight.credited.arrived(flight.credited_tokens)
            flight.credited = None

    def _refuse(self, flight: Flight, decode: Sight) -> None:
        self._settle_credit(flight)
        self._upstream.refused(flight, decode)

    # --- what workers tell (see WorkerEvents)

    def scheduled(self, job: Job) -> None:
        """See WorkerEvents: what the prefill worker had cached leaves while the rest computes."""
        if job.is_only_prefill:
            self._push(job)

    def computed(self, job: Job) -> None:
        """See WorkerEvents: a chunk's full blocks leave at once, with the prompt its last one."""
        flight = _flight_of(job)
        self._push(job)
        if not job.remaining:
            flight.prefilled_s = self._loop.now_s
            assert flight.transfer is not None
            if flight.transfer.is_idle:
                self._drained(flight)

    def first_token(self, job: Job) -> None:
        """See WorkerEvents."""
        self._upstream.answered(_flight_of(job))

    def finished(self, job: Job) -> None:
        """See WorkerEvents."""
        self.roster.learn_length(job.request.output_tokens)
        self._upstream.ended(_flight_of(job), Ending.SERVED, "")

    def _push(self, job: Job) -> None:
        flight = _flight_of(job)
        assert flight.transfer is not None
        ready = job.computed
        if job.remaining:
            ready -= ready % self._block_tokens
        if ready > flight.pushed:
            size = (ready - flight.pushed) * self._spec.hardware.kv_bytes_per_token
            flight.pushed = ready
            self._network.push(flight.transfer, size)

    def _drained(self, flight: Flight) -> None:
        if flight.prefilled_s is not None:
            latency_s = self.roster.way_s(self._spec.link.latency_s)
            self._loop.after(latency_s, self._delivered, flight)

    def _delivered(self, flight: Flight) -> None:
        decode, prefill, sent = flight.decode, flight.prefill, flight.remote_job
        assert decode is not None
        assert prefill is not None
        assert sent is not None
        assert flight.prefilled_s is not None
        moved_tokens = flight.request.prompt_tokens - flight.at_decode
        self.roster.learn_transfer(moved_tokens, self._loop.now_s - flight.prefilled_s)
        prefill.reserve(-1)
        prefill.worker.release(sent)
        decode.reserve(-1)
        if self._breaks_promise(decode, flight):
            assert flight.lease is not None
            decode.worker.pool.release(flight.lease)
            decode.worker.wake()
            self._upstream.ended(flight, Ending.REJECTED, PROMISE_BROKEN)
            return
        job = flight.local_job = Job(flight.request, flight.order, flight, is_only_prefill=False)
        job.lease, flight.lease = flight.lease, None
        assert job.lease is not None
        job.table_blocks = job.lease.blocks
        job.cached = sent.cached
        self._upstream.answered(flight)
        decode.worker.deliver(job)

    def _breaks_promise(self, decode: Sight, flight: Flight) -> bool:
        limits, worker, request = self._strict, decode.worker, flight.request
        if limits is None:
            return False
        if self._loop.now_s - request.arrival_s > limits.ttft_s:
            return True
        tokens = worker.resident_tokens + request.prompt_tokens
        step_s = worker.costs.decode_s(worker.decoding + 1, tokens)
        return worker.decoding > 0 and step_s > limits.tpot_s


def _flight_of(job: Job) -> Flight:
    assert isinstance(job.owner, Flight)
    return job.owner
