"""The fleet as the simulated router sees it: what `services.router.candidates` makes of stats.

Figures are those of the moment, with the router's own dispatches on top, as credits make them in
the mesh; how late workers report is not simulated.
"""

from collections.abc import Collection, Mapping

from baton.latency import CostModel
from services.router.policy import DecodeView, PrefillView
from sim.engine.worker import SimWorker
from sim.observe import Role, WorkerState


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
            resident_tokens=(pool.total - pool.available) * pool.block_tokens,
            kv_free_tokens=pool.available * pool.block_tokens,
            costs=self.costs,
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


class FleetViews:
    """All views, made again only where something differs from the last look.

    `changed` has the indices of workers that did something since.
    """

    def __init__(self) -> None:
        self.changed: set[int] = set()
        self._sights: dict[int, Sight] = {}
        self._by_name: dict[str, Sight] = {}
        self._cached: Mapping[str, int] = {}
        self._prefill: dict[int, PrefillView] = {}
        self._decode: dict[int, DecodeView] = {}

    def add(self, sight: Sight) -> None:
        """Takes in a worker."""
        self._sights[sight.worker.index] = self._by_name[sight.name] = sight
        self._make(sight.worker.index, 0)

    def remove(self, sight: Sight) -> None:
        """Forgets a worker."""
        index = sight.worker.index
        del self._sights[index], self._by_name[sight.name]
        self._prefill.pop(index, None)
        self._decode.pop(index, None)
        self.changed.discard(index)

    def touch(self, sight: Sight) -> None:
        """Notes that something about a worker changed."""
        self.changed.add(sight.worker.index)

    def look(self, cached: Mapping[str, int]) -> None:
        """Brings all views up to now, with the tokens that each worker caches of a prompt."""
        changed, before, sights = self.changed, self._cached, self._by_name
        changed.update(
            sights[name].worker.index for name in before if name not in cached and name in sights
        )
        changed.update(
            sights[name].worker.index
            for name, tokens in cached.items()
            if before.get(name) != tokens
        )
        self._cached = cached
        for index in changed:
            if index in self._sights:
                self._make(index, cached.get(self._sights[index].name, 0))
        changed.clear()

    def prefill(self) -> list[PrefillView]:
        """Returns the prefill workers, in a stable order."""
        return list(self._prefill.values())

    def decode(self, excluded: Collection[str]) -> list[DecodeView]:
        """Returns the decode workers but the `excluded` ones, in a stable order."""
        if not excluded:
            return list(self._decode.values())
        return [view for view in self._decode.values() if view.worker_id not in excluded]

    def _make(self, index: int, cached_tokens: int) -> None:
        sight = self._sights[index]
        if sight.role is Role.PREFILL:
            self._prefill[index] = sight.as_prefill(cached_tokens)
        else:
            self._decode[index] = sight.as_decode(cached_tokens)
