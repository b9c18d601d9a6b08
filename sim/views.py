"""The fleet as the simulated router sees it: what `services.router.candidates` makes of stats.

Figures are those of the moment, with the router's own dispatches on top, as credits make them in
the mesh; how late workers report is not simulated.
"""

import random
from collections.abc import Callable, Collection, Iterable
from typing import Generic

from baton.latency import CostModel
from baton.state.prefix_index import Holders
from services.router.policies.standing import Standing
from services.router.policy import (
    DecodeView,
    PrefillView,
    RoutingPolicy,
    StandingPolicy,
    View,
)
from sim.engine.worker import SimWorker
from sim.observe import Role, WorkerState

SHOWN_WHOLE = 32
"""Up to so many workers of a role a policy sees them all."""


class Sight:
    """One worker and the dispatches on their way to it. `costs` is what routers know of it."""

    __slots__ = (
        "_changed",
        "costs",
        "is_draining",
        "joined_s",
        "left_s",
        "name",
        "on_the_way",
        "on_the_way_tokens",
        "reserved",
        "role",
        "worker",
    )

    def __init__(
        self,
        name: str,
        role: Role,
        worker: SimWorker,
        costs: CostModel,
        changed: set[int],
        joined_s: float,
    ) -> None:
        self.name = name
        self.role = role
        self.worker = worker
        self.costs = costs
        self.joined_s = joined_s
        self.left_s: float | None = None
        self.is_draining = False
        self.on_the_way = 0
        self.on_the_way_tokens = 0
        self.reserved = 0
        self._changed = changed

    @property
    def is_idle(self) -> bool:
        """True when nothing is here, on its way here or awaited here."""
        worker = self.worker
        return not (
            self.on_the_way
            or self.reserved
            or worker.queued
            or worker.prefilling
            or worker.decoding
            or worker.pool.leases
        )

    def present_s(self, now_s: float) -> float:
        """Returns how long the worker has been there, or was."""
        return (now_s if self.left_s is None else self.left_s) - self.joined_s

    def send(self, tokens: int) -> None:
        """Counts a dispatch on its way here, with `tokens` to compute."""
        self.on_the_way += 1
        self.on_the_way_tokens += tokens
        self._changed.add(self.worker.index)

    def arrived(self, tokens: int) -> None:
        """Ends what `send` counted: it is here, or went elsewhere."""
        self.on_the_way -= 1
        self.on_the_way_tokens -= tokens
        self._changed.add(self.worker.index)

    def reserve(self, count: int = 1) -> None:
        """Counts a prompt that two workers share: here it waits, computes or is awaited."""
        self.reserved += count
        self._changed.add(self.worker.index)

    def as_prefill(self, cached_tokens: int) -> PrefillView:
        """Returns the view of a prefill worker."""
        worker = self.worker
        return PrefillView(
            self.name,
            self.name,
            "",
            queue_length=worker.queued + worker.prefilling + self.on_the_way,
            cached_tokens=cached_tokens,
            is_draining=self.is_draining,
            queued_tokens=worker.backlog_tokens + self.on_the_way_tokens,
            queued_pairs=worker.backlog_pairs
            + self.on_the_way_tokens**2 / (2 * max(1, self.on_the_way)),
            costs=self.costs,
        )

    def as_decode(self, cached_tokens: int) -> DecodeView:
        """Returns the view of a decode worker; `reserved` prompts of it are computed elsewhere."""
        worker, pool = self.worker, self.worker.pool
        return DecodeView(
            self.name,
            self.name,
            "",
            queue_length=worker.queued + worker.prefilling,
            decode_load=worker.decoding + self.reserved + self.on_the_way,
            cached_tokens=cached_tokens,
            is_draining=self.is_draining,
            queued_tokens=worker.backlog_tokens + self.on_the_way_tokens,
            queued_pairs=worker.backlog_pairs
            + self.on_the_way_tokens**2 / (2 * max(1, self.on_the_way)),
            resident_tokens=(pool.total - pool.available) * pool.block_tokens,
            kv_free_tokens=pool.available * pool.block_tokens,
            costs=self.costs,
            takes_prefilled=self.role is not Role.AGGREGATED,
        )

    def state(self) -> WorkerState:
        """Returns the worker's true state."""
        worker, pool = self.worker, self.worker.pool
        return WorkerState(
            name=self.name,
            role=self.role,
            joined_s=self.joined_s,
            is_draining=self.is_draining,
            queued=worker.queued,
            prefilling=worker.prefilling,
            decoding=worker.decoding,
            awaited=self.reserved,
            queued_tokens=worker.backlog_tokens,
            backlog_s=worker.backlog_marginal_s,
            resident_tokens=worker.resident_tokens,
            kv_tokens=pool.total * pool.block_tokens,
            kv_owned_tokens=(pool.total - pool.available) * pool.block_tokens,
            busy_s=worker.busy_s,
            prefilled_tokens=worker.prefill_tokens,
            decoded_tokens=worker.decode_tokens,
        )


class RoleViews(Generic[View]):
    """The views of one role's workers, made again only where something differs.

    Small fleets are shown whole. Of large ones policies that can are shown a few: see `Standing`.
    """

    def __init__(
        self,
        make: Callable[[Sight, int], View],
        keys: Callable[[View], tuple[float, ...]] | None,
        rng: random.Random,
    ) -> None:
        self._make: Callable[[Sight, int], View] = make
        self._keys: Callable[[View], tuple[float, ...]] | None = keys
        self._rng = rng
        self._sights: dict[str, Sight] = {}
        self._views: dict[str, View] = {}
        self._standing: Standing | None = None
        self._moved: set[str] = set()

    def put(self, sight: Sight) -> None:
        """Takes a worker in, or notes that something changed about it."""
        self._sights[sight.name] = sight
        self._views.pop(sight.name, None)
        self._moved.add(sight.name)

    def drop(self, sight: Sight) -> None:
        """Forgets a worker."""
        self._sights.pop(sight.name, None)
        self._views.pop(sight.name, None)
        self._moved.discard(sight.name)
        if self._standing is not None:
            self._standing.drop(sight.name)

    def show(self, holders: Holders, block_tokens: int) -> list[View]:
        """Returns the workers that a request may go to."""
        names: Iterable[str] = self._sights
        if self._keys is not None and len(self._sights) > SHOWN_WHOLE:
            standing = self._put_in_order(self._keys)
            if len(standing) > SHOWN_WHOLE:
                names = standing.few(holders)
        return [self._view(name, holders.depth(name) * block_tokens) for name in names]

    def _put_in_order(self, keys_of: Callable[[View], tuple[float, ...]]) -> Standing:
        """Returns the orders, with those that moved since the last look where they belong now."""
        for name in self._moved:
            sight, keys = self._sights[name], keys_of(self._view(name, 0))
            if self._standing is None:
                self._standing = Standing(len(keys), self._rng)
            if sight.is_draining:
                self._standing.drop(name)
            else:
                self._standing.put(name, keys)
        self._moved.clear()
        assert self._standing is not None
        return self._standing

    def _view(self, name: str, cached_tokens: int) -> View:
        view = self._views.get(name)
        if view is None or view.cached_tokens != cached_tokens:
            view = self._views[name] = self._make(self._sights[name], cached_tokens)
        return view


class FleetViews:
    """All views. `changed` has the indices of workers that did something since the last look."""

    def __init__(self, routing: RoutingPolicy, block_tokens: int) -> None:
        self.changed: set[int] = set()
        self._block_tokens = block_tokens
        self._sights: dict[int, Sight] = {}
        ranks = routing if isinstance(routing, StandingPolicy) else None
        rng = random.Random("standing")  # noqa: S311 - not for secrets
        self._prefill = RoleViews(Sight.as_prefill, ranks.prefill_keys if ranks else None, rng)
        self._decode = RoleViews(Sight.as_decode, ranks.decode_keys if ranks else None, rng)

    def add(self, sight: Sight) -> None:
        """Takes in a worker."""
        self._sights[sight.worker.index] = sight
        self._put(sight)

    def remove(self, sight: Sight) -> None:
        """Forgets a worker."""
        del self._sights[sight.worker.index]
        self._prefill.drop(sight)
        self._decode.drop(sight)

    def touch(self, sight: Sight) -> None:
        """Notes that something about a worker changed."""
        self.changed.add(sight.worker.index)

    def show(
        self, holders: Holders, excluded: Collection[str]
    ) -> tuple[list[PrefillView], list[DecodeView]]:
        """Returns the workers a request may go to, but the `excluded` ones that decode."""
        for index in self.changed:
            if index in self._sights:
                self._put(self._sights[index])
        self.changed.clear()
        decode = self._decode.show(holders, self._block_tokens)
        if excluded:
            decode = [view for view in decode if view.worker_id not in excluded]
        return self._prefill.show(holders, self._block_tokens), decode

    def _put(self, sight: Sight) -> None:
        if sight.role is Role.PREFILL:
            self._prefill.put(sight)
        else:
            self._decode.put(sight)
