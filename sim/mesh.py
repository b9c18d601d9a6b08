"""The mesh in simulated time: each request's way through admission, router and workers.

Everything that decides is the services' own policy object. What is simulated is what they decide
about: queues, steps, caches, transfers. Every hop between two services is an event of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from baton.state.prefix_index import PrefixIndex
from services.admission.ledger import Permit
from services.admission.policy import PermitRequest
from services.decode.policy import SplitPolicy, SplitReason
from services.router.policy import RouteRequest, RoutingPolicy
from sim.admission import OpenDoor, SimDesk
from sim.engine.events import EventLoop
from sim.engine.job import Job
from sim.engine.links import Network, Transfer
from sim.engine.pool import SimPool
from sim.engine.worker import SimWorker
from sim.fleet import FleetSpec
from sim.flight import Flight
from sim.oracle import Oracle
from sim.outcome import Ending, Outcome
from sim.views import FleetViews, Sight
from sim.workload import SimRequest

MAX_ATTEMPTS = 3
"""Decode workers that the router tries for one request."""

TOO_LONG = "TOO_LONG"
KV_POOL_FULL = "KV_POOL_FULL"
LOCAL_ONLY = "AGGREGATED"

_ORACLE_WORKERS = 64


@dataclass(frozen=True, slots=True)
class MeshTiming:
    """What the mesh itself takes: deciding in the router, and one message between processes."""

    route_s: float = 1e-3
    hop_s: float = 5e-4


@dataclass(frozen=True, slots=True)
class Policies:
    """The objects that decide. `admission` makes the desk, since it needs the run's clock."""

    routing: RoutingPolicy
    split: SplitPolicy
    prefill_queue_max: int
    offload_above_tokens: int
    desk: Callable[[EventLoop, int, int], SimDesk | OpenDoor]


class SimMesh:
    """Replays requests on a fleet; `run` once per object. Each request ends in `on_outcome` once.

    With `asks_oracle` every placement is compared with the best one in hindsight; on large fleets
    every so many, since that costs as much as the fleet has workers.
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
    ) -> None:
        self.loop = EventLoop()
        self.spec = spec
        self._policies = policies
        self._on_outcome = on_outcome
        self._timing = timing or MeshTiming()
        self._block_tokens = block_tokens
        self._index = PrefixIndex()
        self._network = Network(self.loop, spec.link)
        self._changed: set[int] = set()
        self.prefill = [self._sight(n, f"prefill-{n}") for n in range(spec.prefill)]
        self.decode = [
            self._sight(spec.prefill + n, f"decode-{n}")
            for n in range(spec.decode + spec.aggregated)
        ]
        self._aggregated = {sight.name for sight in self.decode[spec.decode :]}
        self._sights = {sight.name: sight for sight in (*self.prefill, *self.decode)}
        self._views = FleetViews(self.prefill, self.decode, self._changed)
        self._desk = policies.desk(self.loop, spec.prefill, len(self.decode))
        self.oracle = Oracle(
            [sight.worker for sight in self.prefill],
            [sight.worker for sight in self.decode],
            spec.link,
            spec.hardware.kv_bytes_per_token,
        )
        self._oracle_every = -(-spec.workers // _ORACLE_WORKERS) if asks_oracle else 0
        self._requests: Iterator[SimRequest] = iter(())
        self.offered = 0
        self.live = 0

    def run(self, requests: Iterator[SimRequest]) -> None:
        """Replays `requests`, which come in the order of their arrival, until the last one ended.

        Afterwards nothing is held any more, which is asserted.
        """
        self._requests = requests
        self._await_next()
        self.loop.run()
        assert self.live == 0, f"{self.live} requests never ended"
        for sight in self._sights.values():
            sight.worker.pool.check()

    def _sight(self, index: int, name: str) -> Sight:
        spec = self.spec
        self._index.add(name)
        pool = SimPool(
            spec.pool_tokens // self._block_tokens,
            self._block_tokens,
            partial(self._index.store, name),
            partial(self._index.remove, name),
        )
        worker = SimWorker(
            index,
            self.loop,
            spec.hardware.costs,
            pool,
            self,
            token_budget=spec.prefill_budget if index < spec.prefill else spec.mixed_budget,
            max_running=spec.max_running,
            changed=self._changed,
        )
        return Sight(name, worker, spec.known_costs, self._changed)

    # --- the door

    def _await_next(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self.loop.at(request.arrival_s, self._arrive, request)

    def _arrive(self, request: SimRequest) -> None:
        flight = Flight(self.offered, request)
        self.offered += 1
        self.live += 1
        self._await_next()
        longest = request.prompt_tokens + request.output_tokens
        if longest > (self.spec.pool_tokens // self._block_tokens) * self._block_tokens:
            self._end(flight, Ending.REJECTED, TOO_LONG)
            return
        permit_request = PermitRequest(
            request_id=str(flight.index),
            priority=request.priority,
            prompt_tokens=request.prompt_tokens,
            uncached_tokens=request.prompt_tokens,
            max_tokens=request.output_tokens,
        )
        self._desk.arrive(
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
        depths = self._index.match(request.hashes, now_s)
        cached = {self._sights[name]: depth * self._block_tokens for name, depth in depths.items()}
        self._views.look(cached)
        decode = self._views.decode(flight.failed)
        if not decode or len(flight.failed) >= MAX_ATTEMPTS:
            self._end(flight, Ending.REJECTED, KV_POOL_FULL)
            return
        route = RouteRequest(
            prompt_tokens=request.prompt_tokens,
            kv_bytes_per_token=self.spec.hardware.kv_bytes_per_token,
        )
        decision = self._policies.routing.choose(route, self._views.prefill(), decode)
        flight.decision = decision
        flight.decode = self._sights[decision.decode.worker_id]
        flight.decode.send()
        self._predict(flight, decision.decode.worker_id, decision.decode.cached_tokens)
        uncached = request.prompt_tokens - decision.decode.cached_tokens
        if decision.prefill_candidates and uncached > self._policies.offload_above_tokens:
            best = decision.prefill_candidates[0]
            flight.credited = self._sights[best.worker_id]
            flight.credited.send()
            self._predict(flight, best.worker_id, best.cached_tokens)
        self.loop.after(self._timing.hop_s, self._at_decode, flight)

    def _predict(self, flight: Flight, worker: str, cached_tokens: int) -> None:
        missing = flight.request.hashes[cached_tokens // self._block_tokens :]
        self._index.predict(worker, missing, self.loop.now_s)

    # --- the decode worker

    def _at_decode(self, flight: Flight) -> None:
        decode, decision = flight.decode, flight.decision
        assert decode is not None
        assert decision is not None
        decode.send(-1)
        if decode.name in self._aggregated:
            flight.reason = LOCAL_ONLY
        else:
            prompt_tokens = flight.request.prompt_tokens
            split = self._policies.split.decide(
                prompt_tokens,
                decode.worker.pool.match(flight.request.hashes, prompt_tokens),
                [view.queue_length for view in decision.prefill_candidates],
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
            self._ask_oracle(flight, decode)
            flight.local_job = Job(request, flight.order, flight, is_only_prefill=False)
            decode.worker.submit(flight.local_job)
            return
        lease = decode.worker.pool.reserve(request.hashes, request.prompt_tokens)
        if lease is None:
            self._settle_credit(flight)
            flight.failed.add(decode.name)
            self.loop.after(self._timing.hop_s, self._place, flight)
            return
        flight.lease = lease
        flight.at_decode = lease.pinned * self._block_tokens
        flight.prefill = self._sights[decision.prefill_candidates[candidate].worker_id]
        decode.reserve()
        self.loop.after(self._timing.hop_s, self._at_prefill, flight)

    # --- the prefill worker

    def _at_prefill(self, flight: Flight) -> None:
        decode, prefill = flight.decode, flight.prefill
        assert decode is not None
        assert prefill is not None
        self._settle_credit(flight)
        waiting = prefill.reserved - prefill.worker.prefilling
        if waiting >= self._policies.prefill_queue_max:
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
            flight.credited.send(-1)
            flight.credited = None

    def _ask_oracle(self, flight: Flight, chosen: Sight) -> None:
        if self._oracle_every and flight.index % self._oracle_every == 0:
            assert flight.decode is not None
            self.oracle.judge(self.loop.now_s, flight.request, flight.decode.worker, chosen.worker)

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
            flight.is_prefilled = True
            assert flight.transfer is not None
            if flight.transfer.is_idle:
                self._drained(flight)

    def first_token(self, job: Job) -> None:
        """See WorkerEvents."""
        self._answer(_flight_of(job))

    def finished(self, job: Job) -> None:
        """See WorkerEvents."""
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
        if flight.is_prefilled:
            self.loop.after(self.spec.link.latency_s, self._delivered, flight)

    def _delivered(self, flight: Flight) -> None:
        decode, prefill, sent = flight.decode, flight.prefill, flight.remote_job
        assert decode is not None
        assert prefill is not None
        assert sent is not None
        prefill.reserve(-1)
        prefill.worker.release(sent)
        decode.reserve(-1)
        job = flight.local_job = Job(flight.request, flight.order, flight, is_only_prefill=False)
        job.lease, flight.lease = flight.lease, None
        assert job.lease is not None
        job.table_blocks = job.lease.blocks
        job.cached = max(flight.at_decode, sent.cached)
        self._answer(flight)
        decode.worker.deliver(job)

    # --- the answer

    def _answer(self, flight: Flight) -> None:
        flight.first_token_s = self.loop.now_s + self._timing.hop_s
        assert flight.permit is not None
        self._desk.prefill_done(flight.permit)

    def _end(self, flight: Flight, ending: Ending, reason: str) -> None:
        self.live -= 1
        ended_s = self.loop.now_s + self._timing.hop_s
        if ending is Ending.REJECTED:
            self._on_outcome(Outcome(flight.request, ending, reason, ended_s))
        else:
            self._on_outcome(_served(flight, ended_s))
        if flight.permit is not None:
            self._desk.release(flight.permit)


def _flight_of(job: Job) -> Flight:
    assert isinstance(job.owner, Flight)
    return job.owner


def _served(flight: Flight, ended_s: float) -> Outcome:
    request, job, decode = flight.request, flight.local_job, flight.decode
    assert job is not None
    assert decode is not None
    assert flight.first_token_s is not None
    later_tokens = request.output_tokens - 1
    prefill = flight.prefill if flight.remote_job is not None else None
    return Outcome(
        request,
        Ending.SERVED,
        flight.reason,
        ended_s,
        ttft_s=flight.first_token_s - request.arrival_s,
        tpot_s=(ended_s - flight.first_token_s) / later_tokens if later_tokens else None,
        cached_tokens=job.cached,
        is_remote=prefill is not None,
        prefill_worker=(prefill or decode).name,
        decode_worker=decode.name,
    )
