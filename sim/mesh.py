"""The mesh in simulated time: each request's way through admission, router and workers.

Everything that decides is the services' own policy object. What is simulated is what they decide
about: queues, steps, caches, transfers. Every hop between two services is an event of its own.
"""

from collections.abc import Callable, Iterator
from functools import partial

from baton.state.prefix_index import PrefixIndex
from services.admission.ledger import Permit
from services.admission.policy import PermitRequest
from services.decode.policy import SplitReason
from services.router.policy import Decision, RouteRequest
from sim.engine.events import EventLoop
from sim.engine.job import Job
from sim.engine.links import Network, Transfer
from sim.fleet import FleetSpec
from sim.flight import Flight
from sim.observe import LiveRequest, Observation, Role
from sim.oracle import Oracle
from sim.outcome import Ending, Outcome
from sim.outlook import outlook
from sim.policies import MeshTiming, Policies
from sim.results.recorder import Slo
from sim.roster import Roster
from sim.views import Sight
from sim.workload import SimRequest

MAX_ATTEMPTS = 3
"""Decode workers that the router tries for one request."""

TOO_LONG = "TOO_LONG"
KV_POOL_FULL = "KV_POOL_FULL"
PROMISE_BROKEN = "PROMISE_BROKEN"
LOCAL_ONLY = "AGGREGATED"

_ORACLE_WORKERS = 4

Controller = Callable[[Observation], None]
"""Called every so many simulated seconds; it may change the roster."""

_DECODES = (Role.DECODE, Role.AGGREGATED)


class SimMesh:
    """Replays requests on a fleet; `run` once per object. Each request ends in `on_outcome` once.

    With `asks_oracle` placements are compared with the best one in hindsight; every so many, since
    that costs as much as the fleet has workers.

    With `strict` limits a stream is turned away, though its prompt is computed, when its first
    token is late already or a decode step with it would take too long. This is the second check of
    Mooncake's decode workers: it keeps what running streams were promised, and everybody who was
    accepted wrongly shows as a rejection with a wasted prompt. Baton's own workers do not do so.
    """

    def __init__(
        self,
        spec: FleetSpec,
        block_tokens: int,
        policies: Policies,
        on_outcome: Callable[[Outcome], None],
        *,
        timing: MeshTiming | None = None,
        asks_oracle: bool = True,
        strict: Slo | None = None,
    ) -> None:
        self._strict = strict
        self.loop = EventLoop()
        self.spec = spec
        self._policies = policies
        self._on_outcome = on_outcome
        self._timing = timing or MeshTiming()
        self._block_tokens = block_tokens
        self._index = PrefixIndex()
        self._network = Network(self.loop, spec.link)
        self.roster = Roster(
            spec, block_tokens, self.loop, self._index, self, policies.routing, self._resized
        )
        kv_bytes = spec.hardware.kv_bytes_per_token
        self.oracle = Oracle(self.roster, spec.link, kv_bytes, policies.tpot_price)
        self._oracle_every = -(-spec.workers // _ORACLE_WORKERS) if asks_oracle else 0
        self._requests: Iterator[SimRequest] = iter(())
        self._flights: dict[int, Flight] = {}
        self._has_more = False
        self.offered = self.rejected = self.served = 0
        self.desk = policies.desk(self)
        self._resized()

    def run(self, requests: Iterator[SimRequest]) -> None:
        """Replays `requests`, which come in the order of their arrival, until the last one ended.

        Afterwards nothing is held any more, which is asserted.
        """
        self._requests = requests
        self._await_next()
        self.loop.run()
        assert not self._flights, f"{len(self._flights)} requests never ended"
        for sight in self.roster.sights.values():
            sight.worker.pool.check()

    def every(self, period_s: float, controller: Controller) -> None:
        """Calls a controller each `period_s` until the last request has ended."""
        self.loop.after(period_s, self._control, (period_s, controller))

    def observe(self) -> Observation:
        """See `MeshState`."""
        return Observation(
            self.loop.now_s,
            tuple(self.roster.states()),
            tuple(self.roster.starting),
            self.offered,
            self.rejected,
            self.served,
            sum(flight.permit is None for flight in self._flights.values()),
        )

    def live_requests(self) -> Iterator[LiveRequest]:
        """See `MeshState`."""
        return (flight.live() for flight in self._flights.values())

    def cached_tokens(self, request: SimRequest) -> int:
        """See `MeshState`."""
        holders = self._index.holders(request.hashes, self.loop.now_s)
        return next((depth for depth, _ in holders.groups()), 0) * self._block_tokens

    @property
    def prefill(self) -> list[Sight]:
        """All prefill workers, those that left too."""
        return self.roster.ever(Role.PREFILL)

    @property
    def decode(self) -> list[Sight]:
        """All workers that decode, those that left too."""
        return self.roster.ever(*_DECODES)

    @property
    def gpu_seconds(self) -> float:
        """What the workers that were there cost so far; those that start count from their join."""
        now_s, spec = self.loop.now_s, self.spec
        return sum(spec.of(it.role).gpus * it.present_s(now_s) for it in self.roster.ever(*Role))

    def _control(self, task: tuple[float, Controller]) -> None:
        period_s, controller = task
        if self._has_more or self._flights:
            controller(self.observe())
            self.loop.after(period_s, self._control, task)

    def _resized(self) -> None:
        count = self.roster.count
        self.desk.resize(count(Role.PREFILL), count(*_DECODES))

    # --- the door

    def _await_next(self) -> None:
        request = next(self._requests, None)
        self._has_more = request is not None
        if request is not None:
            self.loop.at(request.arrival_s, self._arrive, request)

    def _arrive(self, request: SimRequest) -> None:
        flight = Flight(self.offered, request)
        self.offered += 1
        self._flights[flight.index] = flight
        self._await_next()
        longest, room = request.prompt_tokens + request.output_tokens, self.spec.smallest_pool
        if longest > (room // self._block_tokens) * self._block_tokens:
            self._end(flight, Ending.REJECTED, TOO_LONG)
            return
        permit_request = PermitRequest(
            request_id=str(flight.index),
            tenant=request.tenant,
            priority=request.priority,
            prompt_tokens=request.prompt_tokens,
            uncached_tokens=request.prompt_tokens - self.cached_tokens(request),
        )
        self.desk.arrive(
            permit_request,
            partial(self._granted, flight),
            partial(self._end, flight, Ending.REJECTED),
        )

    def _granted(self, flight: Flight, permit: Permit) -> None:
        flight.permit = permit
        self.loop.after(self._timing.route_s, self._place, flight)

    # --- the router

    def _place(self, flight: Flight) -> None:
        request, now_s = flight.request, self.loop.now_s
        holders = self._index.holders(request.hashes, now_s)
        prefill, decode = self.roster.views.show(holders, flight.failed)
        if not decode or len(flight.failed) >= MAX_ATTEMPTS:
            self._end(flight, Ending.REJECTED, KV_POOL_FULL)
            return
        route = RouteRequest(
            prompt_tokens=request.prompt_tokens,
            kv_bytes_per_token=self.spec.hardware.kv_bytes_per_token,
        )
        flight.decision = self._policies.routing.choose(route, prefill, decode)
        self._dispatch(flight, flight.decision)
        self.loop.after(self._timing.hop_s, self._at_decode, flight)

    def _dispatch(self, flight: Flight, decision: Decision) -> None:
        """Counts what is on its way, as a router's credits and predictions do."""
        prompt_tokens = flight.request.prompt_tokens
        flight.decode = self.roster.sights[decision.decode.worker_id]
        self._predict(flight, decision.decode.worker_id, decision.decode.cached_tokens)
        flight.local_tokens = prompt_tokens - decision.decode.cached_tokens
        if self._goes_remote(flight, decision):
            best = decision.prefill_candidates[0]
            flight.local_tokens = 0
            flight.credited = self.roster.sights[best.worker_id]
            flight.credited_tokens = prompt_tokens - best.cached_tokens
            flight.credited.send(flight.credited_tokens)
            self._predict(flight, best.worker_id, best.cached_tokens)
        flight.decode.send(flight.local_tokens)

    def _goes_remote(self, flight: Flight, decision: Decision) -> bool:
        """Guesses what the decode worker will decide, as the router does."""
        if decision.chosen is not None:
            return decision.chosen.prefill is not None
        uncached = flight.request.prompt_tokens - decision.decode.cached_tokens
        return bool(decision.prefill_candidates) and uncached > self._policies.offload_above_tokens

    def _predict(self, flight: Flight, worker: str, cached_tokens: int) -> None:
        missing = flight.request.hashes[cached_tokens // self._block_tokens :]
        self._index.predict(worker, missing, self.loop.now_s)

    # --- the decode worker

    def _at_decode(self, flight: Flight) -> None:
        decode, decision = flight.decode, flight.decision
        assert decode is not None
        assert decision is not None
        decode.arrived(flight.local_tokens)
        if decode.is_draining:
            self._refused(flight, decode)
            return
        if decode.role is Role.AGGREGATED:
            flight.reason = LOCAL_ONLY
        else:
            prompt_tokens = flight.request.prompt_tokens
            split = self._policies.split.decide(
                prompt_tokens,
                decode.worker.pool.match(flight.request.hashes, prompt_tokens),
                [view.queue_length for view in decision.prefill_candidates],
                outlook(decode, decision, prompt_tokens, self.spec.hardware.kv_bytes_per_token),
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
                self._end(flight, Ending.REJECTED, PROMISE_BROKEN)
                return
            self._ask_oracle(flight, decode)
            flight.local_job = Job(request, flight.order, flight, is_only_prefill=False)
            decode.worker.submit(flight.local_job)
            return
        lease = decode.worker.pool.reserve(request.hashes, request.prompt_tokens)
        if lease is None:
            self._refused(flight, decode)
            return
        flight.lease = lease
        flight.at_decode = lease.pinned * self._block_tokens
        name = decision.prefill_candidates[candidate].worker_id
        flight.prefill = self.roster.sights.get(name)
        decode.reserve()
        self.loop.after(self._timing.hop_s, self._at_prefill, flight)

    def _refused(self, flight: Flight, decode: Sight) -> None:
        """Lets the router place the request again, on another worker."""
        self._settle_credit(flight)
        flight.failed.add(decode.name)
        self.loop.after(self._timing.hop_s, self._place, flight)

    # --- the prefill worker

    def _at_prefill(self, flight: Flight) -> None:
        decode, prefill = flight.decode, flight.prefill
        assert decode is not None
        self._settle_credit(flight)
        if prefill is None or self._is_full(prefill):
            self.loop.after(self._timing.hop_s, self._declined, flight)
            return
        self._ask_oracle(flight, prefill)
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

    def _ask_oracle(self, flight: Flight, chosen: Sight) -> None:
        if self._oracle_every and flight.index % self._oracle_every == 0:
            assert flight.decode is not None
            self.oracle.judge(self.loop.now_s, flight.request, flight.decode, chosen)

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
            flight.prefilled_s = self.loop.now_s
            assert flight.transfer is not None
            if flight.transfer.is_idle:
                self._drained(flight)

    def first_token(self, job: Job) -> None:
        """See WorkerEvents."""
        self._answer(_flight_of(job))

    def finished(self, job: Job) -> None:
        """See WorkerEvents."""
        self.roster.learn_length(job.request.output_tokens)
        self._end(_flight_of(job), Ending.SERVED, "")

    def _push(self, job: Job) -> None:
        flight = _flight_of(job)
        assert flight.transfer is not None
        ready = job.computed
        if job.remaining:
            ready -= ready % self._block_tokens
        if ready > flight.pushed:
            size = (ready - flight.pushed) * self.spec.hardware.kv_bytes_per_token
            flight.pushed = ready
            self._network.push(flight.transfer, size)

    def _drained(self, flight: Flight) -> None:
        if flight.prefilled_s is not None:
            self.loop.after(self.spec.link.latency_s, self._delivered, flight)

    def _delivered(self, flight: Flight) -> None:
        decode, prefill, sent = flight.decode, flight.prefill, flight.remote_job
        assert decode is not None
        assert prefill is not None
        assert sent is not None
        assert flight.prefilled_s is not None
        moved_tokens = flight.request.prompt_tokens - flight.at_decode
        self.roster.learn_transfer(moved_tokens, self.loop.now_s - flight.prefilled_s)
        prefill.reserve(-1)
        prefill.worker.release(sent)
        decode.reserve(-1)
        if self._breaks_promise(decode, flight):
            assert flight.lease is not None
            decode.worker.pool.release(flight.lease)
            decode.worker.wake()
            self._end(flight, Ending.REJECTED, PROMISE_BROKEN)
            return
        job = flight.local_job = Job(flight.request, flight.order, flight, is_only_prefill=False)
        job.lease, flight.lease = flight.lease, None
        assert job.lease is not None
        job.table_blocks = job.lease.blocks
        job.cached = sent.cached
        self._answer(flight)
        decode.worker.deliver(job)

    def _breaks_promise(self, decode: Sight, flight: Flight) -> bool:
        limits, worker, request = self._strict, decode.worker, flight.request
        if limits is None:
            return False
        if self.loop.now_s - request.arrival_s > limits.ttft_s:
            return True
        tokens = worker.resident_tokens + request.prompt_tokens
        step_s = worker.costs.decode_s(worker.decoding + 1, tokens)
        return worker.decoding > 0 and step_s > limits.tpot_s

    # --- the answer

    def _answer(self, flight: Flight) -> None:
        flight.first_token_s = self.loop.now_s + self._timing.hop_s
        assert flight.permit is not None
        self.desk.prefill_done(flight.permit)

    def _end(self, flight: Flight, ending: Ending, reason: str) -> None:
        del self._flights[flight.index]
        ended_s = self.loop.now_s + self._timing.hop_s
        if ending is Ending.REJECTED:
            self.rejected += 1
            computed = flight.computed_tokens
            outcome = Outcome(flight.request, ending, reason, ended_s, computed_tokens=computed)
            self._on_outcome(outcome)
        else:
            self.served += 1
            self._on_outcome(flight.outcome(ended_s))
        if flight.permit is not None:
            is_served = ending is Ending.SERVED
            self.desk.release(flight.permit, flight.request.output_tokens if is_served else None)
        self.roster.settle()


def _flight_of(job: Job) -> Flight:
    assert isinstance(job.owner, Flight)
    return job.owner
