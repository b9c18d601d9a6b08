"""The door of the mesh: decides at arrival, keeps who waits, and calls in. Pure.

The service (desk.py) and the simulator drive the same door; time is an argument.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from baton.requests import Priority
from services.admission.averages import WorkRate
from services.admission.forecast import Tally
from services.admission.ladder import CAP_QUANTILE, UNDEGRADED, Degradation, Ladder
from services.admission.ledger import Permit, PermitLedger, Pools
from services.admission.policy import (
    QUEUE_FULL,
    TTFT_UNATTAINABLE,
    AdmissionPolicy,
    MeshLoad,
    PermitRequest,
    QosLimits,
    Reject,
)
from services.admission.retry import retry_after_s
from services.admission.tenants import TenantGate
from services.admission.waiting import PROMOTE_AFTER_TARGETS, Waiter, WaitingRoom

NO_WORKER = "NO_WORKER"
NO_WORKER_RETRY_S = 1.0

LEAST_BOUND = 32
"""A class's queue holds at least so many."""

MOST_BOUND = 4096
"""A class's queue never holds more, however cheap prompts are."""

UNBOUND_DUE_TARGETS = 10.0
"""Requests that no target binds are due after so many targets, so that order stays by arrival."""

WORK_MEMORY_TARGETS = 4.0
"""How much work a class brings is averaged over so many TTFT targets."""

MOST_OVERTAKEN = 0.95


@dataclass(frozen=True, slots=True)
class Turned:
    """A request turned away: why, and when to come back."""

    reason: str
    retry_after_s: float
    predicted_ttft_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Called:
    """A waiter whose turn has come, with its permit and what it has to put up with."""

    waiter: Waiter
    permit: Permit
    degradation: Degradation = UNDEGRADED


@dataclass(frozen=True, slots=True)
class Dismissed:
    """A waiter whose turn has come too late."""

    waiter: Waiter
    turned: Turned


class Door:
    """Lets requests in by a policy. `ladder` None degrades nobody."""

    def __init__(
        self,
        policy: AdmissionPolicy,
        limits: QosLimits,
        tenants: TenantGate,
        rng: random.Random,
        ladder: Ladder | None = None,
    ) -> None:
        self.ledger = PermitLedger()
        self.tenants = tenants
        self.room = WaitingRoom(PROMOTE_AFTER_TARGETS * limits.ttft_slo_s, tenants.weight_of)
        self._policy = policy
        self._limits = limits
        self._ladder = ladder
        self._rng = rng
        self._numbers = itertools.count()
        self._waiting = {priority: Tally() for priority in Priority}
        memory_s = WORK_MEMORY_TARGETS * limits.ttft_slo_s
        self._work = {priority: WorkRate(memory_s) for priority in Priority}

    @property
    def is_empty(self) -> bool:
        """True when nobody holds a permit or waits for one."""
        return not self.ledger.permits and not len(self.room)

    @property
    def policy_name(self) -> str:
        """The policy that decides."""
        return self._policy.name

    def degradation_level(self, priority: Priority) -> int:
        """Returns how many steps a class is degraded."""
        return 0 if self._ladder is None else self._ladder.level(priority)

    def queue_lengths(self) -> dict[Priority, int]:
        """Returns how many wait, by the class that they wait in."""
        return {priority: self.room.length(priority) for priority in Priority}

    def set_pools(self, now_s: float, pools: Pools) -> None:
        """Takes what the pools are."""
        self.ledger.set_pools(now_s, pools)

    def load(self, now_s: float, request: PermitRequest | None = None) -> MeshLoad:
        """Returns the mesh as a request arriving now finds it; None counts everybody as ahead."""
        priority = Priority.LOW if request is None else request.priority
        ahead = {p: tally for p, tally in self._waiting.items() if p >= priority}
        taken = 0.0 if request is None else self._overtaken(now_s, priority)
        return self.ledger.load(now_s, request, self.room.ahead_of(priority), ahead, taken)

    def arrive(self, now_s: float, request: PermitRequest) -> Waiter | Turned:
        """Takes a request in, to wait for `call_in`, or turns it away."""
        load = self.load(now_s, request)
        if not load.capacity:
            return Turned(NO_WORKER, NO_WORKER_RETRY_S)
        stay_s = load.prefill_s + load.decode_s
        over = self.tenants.check(now_s, request.tenant, stay_s)
        if over is not None:
            return self._turned(over)
        verdict = self._policy.decide(now_s, load, request)
        if isinstance(verdict, Reject):
            return self._turned(verdict)
        if self.room.length(request.priority) >= self.bound(load):
            slot_s = load.decode_s / load.capacity
            return self._turned(Reject(QUEUE_FULL, verdict.predicted_ttft_s, slot_s))
        waiter = Waiter(
            request,
            next(self._numbers),
            now_s,
            self._due_s(now_s, request),
            load.own_s,
            verdict.predicted_ttft_s,
            verdict.load,
        )
        self.room.add(waiter, now_s)
        self._waiting[request.priority].add(1, request.prompt_tokens)
        self._work[request.priority].add(now_s, load.own_s)
        self.tenants.enter(request.tenant)
        return waiter

    def take_in(self, now_s: float, request: PermitRequest) -> Permit:
        """Counts a request that runs already, as `ahead` allowed."""
        permit = self.ledger.grant(request, now_s)
        self._work[request.priority].add(now_s, permit.work_s)
        self.tenants.enter(request.tenant)
        return permit

    def ahead(self) -> int:
        """Returns how many prompts a router may have computed at once without asking first.

        As many as the workers compute, while asking would change nothing: nobody waits, no tenant
        is limited, no class is degraded, and the permits are at most half of what there may be.
        """
        ledger, workers = self.ledger, self.ledger.pools.computing_workers
        if len(self.room) or self.tenants.limits_anybody:
            return 0
        if self._ladder is not None and not self._ladder.is_down:
            return 0
        if ledger.quota is not None and ledger.quota - ledger.permits < workers:
            return 0
        running = ledger.permits + ledger.elsewhere.prefilling + ledger.elsewhere.decoding
        return workers if 2 * running <= ledger.pools.decode.capacity else 0

    def bound(self, load: MeshLoad) -> int:
        """Returns how many of one class may wait: as many as the decode pool runs at once, or as
        the workers compute within a target. With fewer it would refuse whom targets let in."""
        in_time = 0.0
        if load.prefill_s:
            in_time = self._limits.ttft_slo_s * load.computing_workers / load.prefill_s
        return max(LEAST_BOUND, load.capacity, min(MOST_BOUND, int(in_time)))

    def call_in(self, now_s: float) -> Iterator[Called | Dismissed]:
        """Yields those whose turn has come: for whom there is room, or who come too late by now."""
        while (waiter := self.room.head(now_s)) is not None:
            load = self.ledger.load(now_s, waiter.request)
            if self._is_late(now_s, waiter, load):
                yield Dismissed(waiter, self._dismiss(now_s, waiter))
                continue
            if not load.capacity or not self._policy.may_start(now_s, load, waiter.request):
                return
            self._withdraw(waiter)
            self.room.charge(waiter)
            permit = self.ledger.grant(waiter.request, now_s)
            yield Called(waiter, permit, self._degradation(now_s, waiter))

    def sweep(self, now_s: float) -> list[Dismissed]:
        """Turns those away who would be too late by now even if they started at once."""
        load = self.ledger.load(now_s)
        late = [waiter for waiter in self.room if self._is_late(now_s, waiter, load)]
        return [Dismissed(waiter, self._dismiss(now_s, waiter)) for waiter in late]

    def _is_late(self, now_s: float, waiter: Waiter, load: MeshLoad) -> bool:
        """Tells whether a waiter would be too late after what was granted already."""
        needs_s = load.wait_s + waiter.work_s
        return self._policy.is_hopeless(now_s - waiter.arrived_s, needs_s, waiter.request)

    def _dismiss(self, now_s: float, waiter: Waiter) -> Turned:
        load = self.load(now_s, waiter.request)
        self.leave(waiter)
        ttft_s = now_s - waiter.arrived_s + load.ttft_s
        return self._turned(Reject(TTFT_UNATTAINABLE, ttft_s, load.wait_s))

    def leave(self, waiter: Waiter) -> None:
        """Gives a place in the queue up."""
        self._withdraw(waiter)
        self.tenants.leave(waiter.request.tenant)

    def prefill_done(self, permit: Permit, now_s: float) -> None:
        """Notes that the permit's prompt is computed."""
        self.ledger.prefill_done(permit, now_s)

    def release(self, permit: Permit, now_s: float, output_tokens: int | None = None) -> None:
        """Ends a permit; `output_tokens` when its answer ended by itself."""
        self.ledger.release(permit, now_s, output_tokens)
        self.tenants.leave(permit.request.tenant)

    def _overtaken(self, now_s: float, priority: Priority) -> float:
        """Returns the share of the prefill pool that the classes above take as they come."""
        above = [rate.read(now_s) for level, rate in self._work.items() if level > priority]
        workers = max(self.ledger.pools.computing_workers, 1)
        return min(MOST_OVERTAKEN, sum(above) / workers)

    def _withdraw(self, waiter: Waiter) -> None:
        self.room.remove(waiter)
        self._waiting[waiter.request.priority].add(-1, -waiter.request.prompt_tokens)

    def _due_s(self, now_s: float, request: PermitRequest) -> float:
        own_s = self._limits.ttft_limit_s(request)
        unbound_s = UNBOUND_DUE_TARGETS * self._limits.ttft_slo_s
        due_s = now_s + min(own_s, request.ttft_slo_s or unbound_s)
        return due_s if request.deadline_s is None else min(due_s, request.deadline_s)

    def _turned(self, verdict: Reject) -> Turned:
        after_s = retry_after_s(verdict.drain_s, self._rng)
        return Turned(verdict.reason, after_s, verdict.predicted_ttft_s)

    def _degradation(self, now_s: float, waiter: Waiter) -> Degradation:
        if self._ladder is None:
            return UNDEGRADED
        request = waiter.request
        usual = self.ledger.lengths.of(request.priority).quantile(CAP_QUANTILE)
        return self._ladder.degrade(now_s, request.priority, waiter.load, request.max_tokens, usual)
