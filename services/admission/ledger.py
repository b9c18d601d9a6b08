"""Who holds a permit, and what that means for the two pools. Pure; time is an argument.

A permit is granted, its prompt gets computed ("prefill done"), and it is released: one way in, one
way out. Everything that policies predict from is kept as sums, so that asking costs little.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from baton.latency import CostModel
from baton.requests import Priority
from services.admission.averages import MovingAverage, PoolTime, Ratio, TokenClock
from services.admission.forecast import CohortForecast, CohortKey, Cohorts, Tally
from services.admission.lengths import OutputLengths
from services.admission.policy import NO_STREAMS, DecodePool, MeshLoad, PermitRequest, Streams


@dataclass(slots=True, eq=False)
class Permit:
    """The right to run one request.

    `work_s` is the worker time that its prompt was expected to need; `is_contended` when all
    workers had a prompt already. `token_mark` is a reading of the token clock.
    """

    request: PermitRequest
    work_s: float = 0.0
    is_contended: bool = False
    prefilled_s: float | None = None
    token_mark: float = 0.0
    cohort: CohortKey | None = None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the permits of the other admission services amount to; see MeshLoad."""

    prefilling: int = 0
    decoding: int = 0
    coming_tokens: int = 0
    backlog_s: float = 0.0
    streams: Streams = NO_STREAMS

    def plus(self, other: "Elsewhere") -> "Elsewhere":
        """Returns both together."""
        return Elsewhere(
            self.prefilling + other.prefilling,
            self.decoding + other.decoding,
            self.coming_tokens + other.coming_tokens,
            self.backlog_s + other.backlog_s,
            self.streams.plus(*other.streams),
        )


NOBODY_ELSE = Elsewhere()

USUAL_TOKENS = 512.0
"""What a prompt is taken to be before any was seen."""

USUAL_WEIGHT = 0.05
"""Weight of a prompt in the running mean of their uncached tokens."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The workers that accept work and what their computing costs."""

    prefill_workers: int = 0
    decode: DecodePool = field(default_factory=DecodePool)
    prefill_costs: CostModel = field(default_factory=CostModel)

    @property
    def computing_workers(self) -> int:
        """Workers that compute prompts; decode workers where there are no others."""
        return self.prefill_workers or self.decode.workers


class PermitLedger:
    """All permits of one admission service."""

    def __init__(self) -> None:
        self.pools = Pools()
        self.elsewhere = NOBODY_ELSE
        self.quota: int | None = None
        self.lengths = OutputLengths()
        self._prefilling: set[Permit] = set()
        self._decoding: set[Permit] = set()
        self._coming = {priority: Tally() for priority in Priority}
        self._cohorts = Cohorts()
        self._work_s = 0.0
        self._progress_s = 0.0
        self._progress_at_s = 0.0
        self._pool_time = PoolTime()
        self._busy_mark_s = 0.0
        self._full_mark_s = 0.0
        self._token_clock = TokenClock()
        self._prefill_s = MovingAverage()
        self._decode_s = MovingAverage()
        self._prefill_bias = Ratio()
        self._decode_bias = Ratio()
        self._usual_tokens = USUAL_TOKENS

    @property
    def permits(self) -> int:
        """Live permits."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def prefilling(self) -> Iterable[Permit]:
        """The permits whose prompt is not computed yet."""
        return self._prefilling

    @property
    def decode_pool(self) -> DecodePool:
        """The decode workers, with what their costs are off by."""
        return self.pools.decode

    def set_pools(self, now_s: float, pools: Pools) -> None:
        """Takes what the pools are; permits beyond a smaller capacity stay valid."""
        self._settle(now_s)
        self._forget_old_costs(now_s, pools)
        decode = replace(pools.decode, bias=self._decode_bias.value)
        self.pools = replace(pools, decode=decode)
        self._share(now_s)

    def _forget_old_costs(self, now_s: float, pools: Pools) -> None:
        """Keeps what was learned to be true when the costs change that it corrects.

        Workers fit their costs from the first requests on, so these change several times over.
        """
        old, usual = self.pools, max(1, round(self._usual_tokens))
        if pools.prefill_costs != old.prefill_costs:
            before_s = old.prefill_costs.prefill_s(usual, 0)
            self._prefill_bias.rescale(before_s, pools.prefill_costs.prefill_s(usual, 0))
        if pools.decode.costs != old.decode.costs and pools.decode.workers:
            streams = self._cohorts.now(self._token_clock.read(now_s)).plus(1, usual)
            before_s = replace(old.decode, bias=1.0, workers=pools.decode.workers).tpot_s(streams)
            self._decode_bias.rescale(before_s, replace(pools.decode, bias=1.0).tpot_s(streams))

    def work_s(self, request: PermitRequest) -> float:
        """Returns the worker time that a prompt is expected to need; 0 while nobody knows."""
        costs = self.pools.prefill_costs
        if not (costs.knows_prefill or self._prefill_bias.is_known):
            return 0.0
        return self._prefill_bias.value * self._costed_s(request)

    def load(
        self,
        now_s: float,
        request: PermitRequest | None = None,
        ahead: tuple[int, float] = (0, 0.0),
        waiting: dict[Priority, Tally] | None = None,
        overtaken: float = 0.0,
    ) -> MeshLoad:
        """Returns the mesh as a request finds it that has `ahead` before it.

        `ahead` are the number of those who wait and the worker time they need, `waiting` they by
        class; `overtaken` as in MeshLoad.
        """
        self._settle(now_s)
        clock = self._token_clock.read(now_s)
        other, pools = self.elsewhere, self.pools
        return MeshLoad(
            prefill_workers=pools.prefill_workers,
            decode_workers=pools.decode.workers,
            prefill_permits=len(self._prefilling) + other.prefilling,
            decode_permits=len(self._decoding) + other.decoding,
            waiting_ahead=ahead[0],
            prefill_s=self._prefill_s.value,
            decode_s=self._decode_s.value,
            backlog_s=self.backlog_s + other.backlog_s,
            ahead_s=ahead[1],
            own_s=0.0 if request is None else self.work_s(request),
            overtaken=overtaken,
            decode=pools.decode,
            streams=self._cohorts.now(clock).plus(*other.streams),
            forecast=self._forecast(clock, waiting),
            free_slots=None if self.quota is None else self.quota - self.permits,
        )

    @property
    def backlog_s(self) -> float:
        """Worker time that the granted prompts still need, as of the last change."""
        return max(0.0, self._work_s - self._progress_s)

    def totals(self, now_s: float) -> Elsewhere:
        """Returns what the own permits amount to, to tell other admission services."""
        self._settle(now_s)
        return Elsewhere(
            prefilling=len(self._prefilling),
            decoding=len(self._decoding),
            coming_tokens=sum(tally.tokens for tally in self._coming.values()),
            backlog_s=self.backlog_s,
            streams=self._cohorts.now(self._token_clock.read(now_s)),
        )

    def grant(self, request: PermitRequest, now_s: float) -> Permit:
        """Makes a permit; whoever calls has asked whether there is room."""
        self._settle(now_s)
        running = len(self._prefilling) + self.elsewhere.prefilling
        permit = Permit(
            request,
            work_s=self.work_s(request),
            is_contended=running >= self.pools.computing_workers,
        )
        self._prefilling.add(permit)
        self._work_s += permit.work_s
        self._coming[request.priority].add(1, request.prompt_tokens)
        self._share(now_s)
        return permit

    def prefill_done(self, permit: Permit, now_s: float) -> None:
        """Moves a permit from prefill to decode; again it does nothing."""
        if permit not in self._prefilling:
            return
        self._leave_prefill(permit, now_s)
        self._measure(permit, now_s)
        permit.prefilled_s = now_s
        permit.token_mark = self._token_clock.read(now_s)
        request = permit.request
        permit.cohort = self._cohorts.join(
            request.priority, permit.token_mark, request.prompt_tokens
        )
        self._decoding.add(permit)
        self._share(now_s)

    def release(self, permit: Permit, now_s: float, output_tokens: int | None = None) -> None:
        """Ends a permit, wherever it stands; `output_tokens` when its answer ended by itself."""
        if permit.prefilled_s is None:
            self._leave_prefill(permit, now_s)
        else:
            assert permit.cohort is not None
            self._settle(now_s)
            self._decoding.remove(permit)
            self._cohorts.leave(permit.cohort, permit.request.prompt_tokens)
            self._decode_s.add(now_s - permit.prefilled_s)
            if output_tokens is not None:
                self._learn(permit, now_s, output_tokens)
        self._share(now_s)

    def _measure(self, permit: Permit, now_s: float) -> None:
        """Learns from a computed prompt what prompts cost."""
        time = self._pool_time
        time.read(now_s)
        self._usual_tokens += USUAL_WEIGHT * (permit.request.uncached_tokens - self._usual_tokens)
        self._prefill_s.add(time.busy_s - self._busy_mark_s)
        self._busy_mark_s = time.busy_s
        if permit.is_contended:
            # Whoever comes to a free worker ends while others wait, the last ones that waited end
            # when nobody does: both are partly in `full_s`, and make up for each other.
            self._prefill_bias.add(time.full_s - self._full_mark_s, self._costed_s(permit.request))
            self._full_mark_s = time.full_s

    def _learn(self, permit: Permit, now_s: float, output_tokens: int) -> None:
        self.lengths.add(permit.request.priority, output_tokens)
        clocked = self._token_clock.read(now_s) - permit.token_mark
        if output_tokens > 1:
            bias = self.pools.decode.bias
            self._decode_bias.add(clocked * bias, output_tokens - 1)
            decode = replace(self.pools.decode, bias=self._decode_bias.value)
            self.pools = replace(self.pools, decode=decode)

    def _forecast(self, clock: float, waiting: dict[Priority, Tally] | None) -> CohortForecast:
        coming = {p: Tally(tally.count, tally.tokens) for p, tally in self._coming.items()}
        for priority, tally in (waiting or {}).items():
            coming[priority].add(tally.count, tally.tokens)
        other = self.elsewhere
        coming[Priority.NORMAL].add(other.prefilling, other.coming_tokens)
        return CohortForecast(
            self._cohorts, coming, other.streams, self.lengths, clock, lambda: self.pools.decode
        )

    def _costed_s(self, request: PermitRequest) -> float:
        cached = request.prompt_tokens - request.uncached_tokens
        return self.pools.prefill_costs.prefill_s(max(1, request.uncached_tokens), max(0, cached))

    def _leave_prefill(self, permit: Permit, now_s: float) -> None:
        self._settle(now_s)
        self._prefilling.remove(permit)
        self._coming[permit.request.priority].add(-1, -permit.request.prompt_tokens)
        self._work_s = self._work_s - permit.work_s if self._prefilling else 0.0
        # What it needed less than the workers did meanwhile was done for the others.
        self._progress_s = max(0.0, self._progress_s - permit.work_s)

    def _settle(self, now_s: float) -> None:
        """Brings the prefill pool's progress up to now."""
        running = min(len(self._prefilling), self.pools.computing_workers)
        done_s = self._progress_s + running * max(0.0, now_s - self._progress_at_s)
        self._progress_s = min(done_s, self._work_s)
        self._progress_at_s = max(now_s, self._progress_at_s)

    def _share(self, now_s: float) -> None:
        own = len(self._prefilling)
        running = own + self.elsewhere.prefilling
        self._pool_time.share(now_s, own, running, self.pools.computing_workers)
        streams = self._cohorts.now(self._token_clock.read(now_s))
        self._token_clock.pace(
            now_s, self.pools.decode.tpot_s(streams.plus(*self.elsewhere.streams))
        )
