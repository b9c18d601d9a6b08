"""The mesh in simulated time: each request's way through admission, router and workers.

Everything that decides is the services' own policy object. What is simulated is what they decide
about: queues, steps, caches, transfers. Every hop between two services is an event of its own.
"""

from collections.abc import Callable, Iterator
from functools import partial

from baton.state.prefix_index import PrefixIndex
from services.admission.ledger import Permit
from services.admission.policy import PermitRequest
from services.router.policy import Decision, RouteRequest
from sim.engine.events import EventLoop
from sim.execution import Execution
from sim.fleet import FleetSpec
from sim.flight import Flight
from sim.observe import LiveRequest, Observation, Role
from sim.oracle import Oracle
from sim.outcome import Ending, Outcome
from sim.policies import MeshTiming, Policies
from sim.results.recorder import Slo
from sim.views import Sight
from sim.workload import SimRequest

MAX_ATTEMPTS = 3
"""Decode workers that the router tries for one request."""

TOO_LONG = "TOO_LONG"
KV_POOL_FULL = "KV_POOL_FULL"

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
        self.loop = EventLoop()
        self.spec = spec
        self._policies = policies
        self._on_outcome = on_outcome
        self._timing = timing or MeshTiming()
        self._block_tokens = block_tokens
        self._index = PrefixIndex()
        self._execution = Execution(
            self.loop, spec, policies, self._timing, block_tokens, self._index, self, strict
        )
        self.roster = self._execution.roster
        kv_bytes = spec.hardware.kv_bytes_per_token
        self.oracle = Oracle(self.roster, spec.link, kv_bytes, policies.tpot_price)
        self._oracle_every = -(-spec.workers // _ORACLE_WORKERS) if asks_oracle else 0
        self._requests: Iterator[SimRequest] = iter(())
        self._flights: dict[int, Flight] = {}
        self._has_more = False
        self.offered = self.rejected = self.served = 0
        self.desk = policies.desk(self)
        self.resized()

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

    def resized(self) -> None:
        """See `Upstream`."""
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
            self.ended(flight, Ending.REJECTED, TOO_LONG)
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
            partial(self.ended, flight, Ending.REJECTED),
        )

    def _granted(self, flight: Flight, permit: Permit) -> None:
        flight.permit = permit
        self.loop.after(self.roster.way_s(self._timing.route_s), self._place, flight)

    # --- the router

    def _place(self, flight: Flight) -> None:
        request, now_s = flight.request, self.loop.now_s
        holders = self._index.holders(request.hashes, now_s)
        prefill, decode = self.roster.views.show(holders, flight.failed)
        if not decode or len(flight.failed) >= MAX_ATTEMPTS:
            self.ended(flight, Ending.REJECTED, KV_POOL_FULL)
            return
        route = RouteRequest(
            prompt_tokens=request.prompt_tokens,
            kv_bytes_per_token=self.spec.hardware.kv_bytes_per_token,
        )
        flight.decision = self._policies.routing.choose(route, prefill, decode)
        self._dispatch(flight, flight.decision)
        self.loop.after(self._timing.hop_s, self._execution.start, flight)

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

    def refused(self, flight: Flight, decode: Sight) -> None:
        """See `Upstream`: the router places the request again, on another worker."""
        flight.failed.add(decode.name)
        self.loop.after(self._timing.hop_s, self._place, flight)

    def computing(self, flight: Flight, on: Sight) -> None:
        """See `Upstream`."""
        if self._oracle_every and flight.index % self._oracle_every == 0:
            assert flight.decode is not None
            self.oracle.judge(self.loop.now_s, flight.request, flight.decode, on)

    # --- the answer

    def answered(self, flight: Flight) -> None:
        """See `Upstream`."""
        flight.first_token_s = self.loop.now_s + self._timing.hop_s
        assert flight.permit is not None
        self.desk.prefill_done(flight.permit)

    def ended(self, flight: Flight, ending: Ending, reason: str) -> None:
        """See `Upstream`."""
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
