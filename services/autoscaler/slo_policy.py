"""The default policy: both pools together, from forecast demand and what computing costs. Pure."""

import math
from collections import deque
from dataclasses import dataclass, field, replace

from services.autoscaler.bursts import MEMORY_S, Bursts
from services.autoscaler.demand import DemandForecast, Load
from services.autoscaler.sizing import (
    KV_MARGIN,
    SLO_MARGIN,
    Slo,
    backlog_workers,
    decode_share,
    decode_workers,
    prefill_workers,
)
from services.autoscaler.state import (
    Bounds,
    Decision,
    FleetState,
    Pool,
    PoolState,
    PoolTarget,
    Reason,
)

BURST_S = 10.0
HELP = 0.7
RECOVER_S = 20.0
SHRINK_LOAD = 0.8
"""Measured load that the survivors of a scale-down may have, as a share."""


@dataclass(frozen=True, slots=True)
class SloSettings:
    """What the policy aims at and how it moves. Times in seconds.

    `budget` bounds both pools together. A pool shrinks to the most it needed within `hold_s`, and
    starts that are not ready are called off when nothing needed them for `cancel_after_s`.
    `start_s` is how long a worker took to get ready lately. `flips` says whether workers can
    change their role.
    """

    slo: Slo
    prefill: Bounds
    decode: Bounds
    budget: int
    hold_s: float = 90.0
    learn_s: float = 900.0
    burst_memory_s: float = MEMORY_S
    cancel_after_s: float = 20.0
    start_s: float = 30.0
    flips: bool = True

    def bounds(self, pool: Pool) -> Bounds:
        """Returns the bounds of one pool."""
        return self.prefill if pool is Pool.PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class Need:
    """Workers that a pool needs, why, and the numbers behind it.

    `lasting` are those that demand needs, without what waits now.
    """

    replicas: int
    lasting: int
    reason: Reason
    numbers: dict[str, float]


@dataclass(slots=True)
class NeedWindow:
    """The needs of the last so many seconds."""

    _needs: deque[tuple[float, Need]] = field(default_factory=deque)

    def add(self, now_s: float, need: Need, keep_s: float) -> None:
        """Takes in the need of now; forgets what is older than `keep_s`."""
        self._needs.append((now_s, need))
        while self._needs[0][0] < now_s - keep_s:
            self._needs.popleft()

    def most(self, since_s: float) -> int:
        """Returns the largest need at or after `since_s`, backlogs included."""
        return max(need.replicas for at_s, need in self._needs if at_s >= since_s)

    def most_lasting(self) -> int:
        """Returns the largest need without backlogs."""
        return max(need.lasting for _, need in self._needs)


class SloPolicy:
    """Scales up to what forecast and backlog need at once, and down to what the last minutes did.

    A pool that needs more than it has takes over workers that the other one can spare before cold
    ones are started.
    """

    name = "slo"

    def __init__(self, settings: SloSettings) -> None:
        self.settings = settings
        self._demand = DemandForecast(bursts=Bursts(settings.burst_memory_s))
        self._needs = {pool: NeedWindow() for pool in Pool}
        self._first_s = math.inf

    def learn_start(self, start_s: float) -> None:
        """See ScalingPolicy."""
        mean_s = 0.7 * self.settings.start_s + 0.3 * start_s
        self.settings = replace(self.settings, start_s=mean_s)

    def decide(self, now_s: float, fleet: FleetState) -> Decision:
        """See ScalingPolicy."""
        if not fleet.is_fresh:
            return Decision(self._stale(Pool.PREFILL, fleet), self._stale(Pool.DECODE, fleet))
        self._first_s = min(self._first_s, now_s)
        self._demand.look(now_s, fleet.traffic, self.settings.start_s)
        load = self._demand.ahead(self.settings.start_s)
        needs = self._within_budget(
            {
                Pool.PREFILL: self._prefill_need(fleet, load),
                Pool.DECODE: self._decode_need(fleet, load),
            }
        )
        for pool, need in needs.items():
            self._needs[pool].add(now_s, need, self.settings.hold_s)
        targets = {pool: self._target(now_s, pool, fleet.pool(pool), needs[pool]) for pool in Pool}
        return self._with_flips(now_s, fleet, self._affordable(fleet, targets))

    def _affordable(
        self, fleet: FleetState, targets: dict[Pool, PoolTarget]
    ) -> dict[Pool, PoolTarget]:
        """Grows no pool beyond what the other one, which may shrink later only, leaves."""
        over = sum(target.replicas for target in targets.values()) - self.settings.budget
        for pool, target in list(targets.items()):
            least = max(fleet.pool(pool).replicas, self.settings.bounds(pool).minimum)
            cut = min(over, max(0, target.replicas - least))
            if cut > 0:
                over -= cut
                targets[pool] = PoolTarget(target.replicas - cut, Reason.BUDGET, target.numbers)
        return targets

    def _stale(self, pool: Pool, fleet: FleetState) -> PoolTarget:
        replicas = self.settings.bounds(pool).clamp(fleet.pool(pool).replicas)
        return PoolTarget(replicas, Reason.STALE)

    # --- what each pool needs

    def _prefill_need(self, fleet: FleetState, load: Load) -> Need:
        pool, traffic, settings = fleet.prefill, fleet.traffic, self.settings
        costs = pool.costs
        forecast = prefill_workers(load, costs, settings.slo, settings.prefill.maximum)
        backlog_s = costs.queue_s(
            pool.queued_requests + traffic.waiting_requests,
            pool.queued_tokens + round(traffic.waiting_requests * traffic.tokens_per_request),
        )
        bursts = self._burst_workers(fleet, load)
        current = self._demand.ahead(0).remote_work(costs)
        backlog = backlog_workers(
            backlog_s, current, pool.ready, settings.start_s, max(RECOVER_S, settings.slo.ttft_s)
        )
        numbers = {
            "remote_per_s": load.remote_per_s,
            "remote_tokens": load.remote_tokens,
            "work": load.remote_work(costs),
            "backlog_s": backlog_s,
            "forecast_needs": forecast,
            "burst_needs": bursts,
            "burst_cover": self._demand.bursts.cover,
            "backlog_needs": backlog,
        }
        return self._need(Pool.PREFILL, pool, forecast, bursts, backlog, numbers)

    def _burst_workers(self, fleet: FleetState, load: Load) -> int:
        """Returns the prefill workers that end a burst in time with the decode workers' help.

        What the limit lets wait is computed after the burst. Decode workers compute prompts too
        while they have time.
        """
        costs, slo = fleet.prefill.costs, self.settings.slo
        slack_s = max(0.0, SLO_MARGIN * slo.ttft_s - costs.prefill_s(round(load.remote_tokens), 0))
        work = self._demand.burst_work(costs) * BURST_S / (BURST_S + slack_s)
        busy = decode_share(load, fleet.decode.costs, slo, fleet.decode.kv_tokens)
        return math.ceil(work - max(0.0, fleet.decode.ready - busy) * HELP - 1e-9)

    def _decode_need(self, fleet: FleetState, load: Load) -> Need:
        pool = fleet.decode
        forecast = decode_workers(load, pool.costs, self.settings.slo, pool.kv_tokens)
        # Sequences that wait for KV blocks need as many workers as hold them beside the rest. What
        # waits while blocks are free waits for its prompt's turn.
        held = max(1.0, pool.running_requests / max(1, pool.ready))
        backlog = pool.ready
        if pool.queued_requests > pool.ready and pool.kv_used_share >= KV_MARGIN:
            backlog += math.ceil(pool.queued_requests / held)
        numbers = {
            "output_per_s": load.output_per_s,
            "context_tokens": load.context_tokens,
            "local_work": load.local_work(pool.costs),
            "queued": pool.queued_requests,
            "forecast_needs": forecast,
            "backlog_needs": backlog,
        }
        return self._need(Pool.DECODE, pool, forecast, 0, backlog, numbers)

    def _need(
        self,
        pool: Pool,
        state: PoolState,
        forecast: int,
        bursts: int,
        backlog: int,
        numbers: dict[str, float],
    ) -> Need:
        lasting = max(forecast, bursts)
        is_behind = backlog > max(state.ready, lasting)
        bounds = self.settings.bounds(pool)
        reason = Reason.FORECAST if forecast >= bursts else Reason.BURSTS
        if is_behind:
            reason = Reason.BACKLOG
        wished = backlog if is_behind else lasting
        if wished > bounds.maximum:
            reason = Reason.AT_MAXIMUM
        return Need(
            bounds.clamp(wished), bounds.clamp(lasting), reason, {**numbers, "needs": wished}
        )

    def _within_budget(self, needs: dict[Pool, Need]) -> dict[Pool, Need]:
        """Shrinks both needs alike when they exceed the budget together."""
        wished = sum(need.replicas for need in needs.values())
        budget = self.settings.budget
        if wished <= budget:
            return needs
        prefill, decode = self.settings.prefill, self.settings.decode
        share = round(budget * needs[Pool.PREFILL].replicas / wished)
        # The other pool's minimum comes first, then this one's.
        share = max(prefill.minimum, min(share, budget - decode.minimum))
        sizes = {Pool.PREFILL: share, Pool.DECODE: max(decode.minimum, budget - share)}
        return {
            pool: Need(
                min(size, needs[pool].replicas),
                min(size, needs[pool].lasting),
                Reason.BUDGET,
                needs[pool].numbers,
            )
            for pool, size in sizes.items()
        }

    # --- from needs to targets

    def _target(self, now_s: float, pool: Pool, state: PoolState, need: Need) -> PoolTarget:
        have = state.replicas
        if need.replicas > have:
            return PoolTarget(need.replicas, need.reason, need.numbers)
        if need.replicas == have:
            is_bound = need.reason in (Reason.BUDGET, Reason.AT_MAXIMUM)
            return PoolTarget(have, need.reason if is_bound else Reason.STEADY, need.numbers)
        return self._smaller(now_s, pool, state, need)

    def _smaller(self, now_s: float, pool: Pool, state: PoolState, need: Need) -> PoolTarget:
        have, settings = state.replicas, self.settings
        if have > settings.bounds(pool).maximum:
            most = settings.bounds(pool).maximum
            return PoolTarget(most, Reason.ABOVE_MAXIMUM, need.numbers)
        recent = self._needs[pool].most(now_s - settings.cancel_after_s)
        if state.starting and recent < have:
            kept = max(recent, state.ready)
            return PoolTarget(kept, Reason.START_CANCELLED, need.numbers)
        held = max(recent, self._needs[pool].most_lasting())
        if now_s - self._first_s < settings.learn_s:
            held = max(held, have)
        if held >= have:
            return PoolTarget(have, Reason.HOLDS, {**need.numbers, "needed_lately": held})
        safe = safe_size(pool, state, held)
        if safe >= have:
            return PoolTarget(have, Reason.UNSAFE_TO_SHRINK, need.numbers)
        return PoolTarget(safe, Reason.IDLE, {**need.numbers, "needed_lately": held})

    # --- roles

    def _with_flips(
        self, now_s: float, fleet: FleetState, targets: dict[Pool, PoolTarget]
    ) -> Decision:
        plain = Decision(targets[Pool.PREFILL], targets[Pool.DECODE])
        if not self.settings.flips:
            return plain
        for pool in Pool:
            lacks = targets[pool].replicas - fleet.pool(pool).replicas
            giver = pool.other
            spare = self._spare(now_s, giver, fleet.pool(giver), targets[giver])
            count = min(lacks, spare)
            if count > 0:
                return _flipped(plain, pool, count, fleet)
        return plain

    def _spare(self, now_s: float, pool: Pool, state: PoolState, target: PoolTarget) -> int:
        """Returns how many ready workers a pool can do without at once.

        A worker that changes its role is back within a moment, so what the pool needed just now
        counts, not what it needed minutes ago.
        """
        if target.replicas > state.ready:
            return 0
        recent = self._needs[pool].most(now_s - self.settings.cancel_after_s)
        least = self.settings.bounds(pool).minimum
        return max(0, state.ready - max(safe_size(pool, state, recent), least))


def safe_size(pool: Pool, state: PoolState, wished: int) -> int:
    """Returns `wished`, or more where the measured load would not fit so few with margin.

    Whoever stays takes over the others' load: it grows by N / (N - 1) for one that leaves. A
    decode worker is busy whenever a single stream runs, so there the KV pool tells.
    """
    measured = state.busy_share if pool is Pool.PREFILL else state.kv_used_share
    if state.queued_requests > state.ready:
        measured = 1.0
    return max(wished, math.ceil(state.ready * measured / SHRINK_LOAD - 1e-9))


def _flipped(plain: Decision, to: Pool, count: int, fleet: FleetState) -> Decision:
    giver = to.other
    gains, gives = plain.target(to), plain.target(giver)
    taken = PoolTarget(gains.replicas, Reason.TAKES_OVER, {**gains.numbers, "flips": count})
    left = min(gives.replicas, fleet.pool(giver).replicas - count)
    given = PoolTarget(left, Reason.GIVES_AWAY, {**gives.numbers, "flips": count})
    both = {to: taken, giver: given}
    return Decision(both[Pool.PREFILL], both[Pool.DECODE], count, to)
