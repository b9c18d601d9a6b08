"""The fleet as the simulated router sees it: what `services.router.candidates` makes of stats.

Figures are those of the moment, with the router's own dispatches on top, as credits make them in
the mesh; how late workers report is not simulated.
"""

from collections.abc import Collection, Mapping, Sequence

from baton.latency import CostModel
from services.router.policy import DecodeView, PrefillView
from sim.engine.worker import SimWorker


class Sight:
    """One worker and the dispatches on their way to it. `costs` is what routers know of it."""

    __slots__ = ("_changed", "costs", "name", "on_the_way", "reserved", "worker")

    def __init__(self, name: str, worker: SimWorker, costs: CostModel, changed: set[int]) -> None:
        self.name = name
        self.worker = worker
        self.costs = costs
        self.on_the_way = 0
        self.reserved = 0
        self._changed = changed

    def send(self, count: int = 1) -> None:
        """Counts a dispatch on its way here; -1 when it arrived or went elsewhere."""
        self.on_the_way += count
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
            queued_tokens=worker.backlog_tokens,
            costs=self.costs,
        )

    def as_decode(self, cached_tokens: int) -> DecodeView:
        """Returns the view of a decode worker; `reserved` prompts of it are computed elsewhere."""
        worker = self.worker
        return DecodeView(
            self.name,
            self.name,
            "",
            queue_length=worker.queued + worker.prefilling,
            decode_load=worker.decoding + self.reserved + self.on_the_way,
            cached_tokens=cached_tokens,
            queued_tokens=worker.backlog_tokens,
            resident_tokens=worker.resident_tokens,
            kv_free_tokens=worker.pool.available * worker.pool.block_tokens,
            costs=self.costs,
        )


class FleetViews:
    """All views, made again only where something differs from the last look.

    `changed` has the indices of workers that did something since; prefill workers come first.
    """

    def __init__(
        self, prefill: Sequence[Sight], decode: Sequence[Sight], changed: set[int]
    ) -> None:
        self._sights = [*prefill, *decode]
        self._changed = changed
        self._cached: Mapping[Sight, int] = {}
        self._prefill = [sight.as_prefill(0) for sight in prefill]
        self._decode = [sight.as_decode(0) for sight in decode]

    def look(self, cached: Mapping[Sight, int]) -> None:
        """Brings all views up to now, with the tokens that each worker caches of a prompt."""
        changed, before = self._changed, self._cached
        changed.update(sight.worker.index for sight in before if sight not in cached)
        changed.update(
            sight.worker.index for sight, tokens in cached.items() if before.get(sight) != tokens
        )
        self._cached = cached
        for index in changed:
            self._make(index, cached.get(self._sights[index], 0))
        changed.clear()

    def prefill(self) -> list[PrefillView]:
        """Returns the prefill workers, in a stable order."""
        return self._prefill.copy()

    def decode(self, excluded: Collection[str]) -> list[DecodeView]:
        """Returns the decode workers but the `excluded` ones, in a stable order."""
        if not excluded:
            return self._decode.copy()
        return [view for view in self._decode if view.worker_id not in excluded]

    def _make(self, index: int, cached_tokens: int) -> None:
        sight, first_decode = self._sights[index], len(self._prefill)
        if index < first_decode:
            self._prefill[index] = sight.as_prefill(cached_tokens)
        else:
            self._decode[index - first_decode] = sight.as_decode(cached_tokens)
