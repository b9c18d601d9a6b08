"""The workers of a simulated fleet, which may come, drain, leave and change roles during a run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from baton.latency import TRANSFER_DEFAULTS, CostModel, LengthMean, OnlineFit
from baton.state.prefix_index import PrefixIndex
from services.router.policy import RoutingPolicy
from sim.engine.events import Clock, EventLoop
from sim.engine.host import SharedHost
from sim.engine.pool import SimPool
from sim.engine.worker import SimWorker, WorkerEvents
from sim.fleet import FleetSpec
from sim.observe import Role, WorkerState
from sim.views import FleetViews, Sight

_PUBLISH_EVERY = 64
"""Answers after which routers hear what was learned."""


class Roster:
    """All workers by name. `on_change` is told after one joined or left.

    Names are never used again. Nothing a worker holds is lost: it leaves only once it is idle.
    """

    def __init__(
        self,
        spec: FleetSpec,
        block_tokens: int,
        loop: EventLoop,
        index: PrefixIndex,
        events: WorkerEvents,
        routing: RoutingPolicy,
        on_change: Callable[[], None],
    ) -> None:
        self.sights: dict[str, Sight] = {}
        self.starting: list[Role] = []
        self.views = FleetViews(routing, block_tokens)
        self.gone: list[Sight] = []
        self._spec = spec
        self._block_tokens = block_tokens
        self._loop = loop
        self._host = SharedHost(loop) if spec.sharing else None
        self._index = index
        self._events = events
        self._on_change = on_change
        self._made = 0
        self._answers = 0
        self._length = LengthMean()
        self._transfer = OnlineFit(TRANSFER_DEFAULTS)
        self._counts = dict.fromkeys(Role, 0)
        self._leaving: dict[str, Callable[[], None]] = {}
        for role, count in (
            (Role.PREFILL, spec.prefill),
            (Role.DECODE, spec.decode),
            (Role.AGGREGATED, spec.aggregated),
        ):
            for _ in range(count):
                self._join(role)

    def of(self, *roles: Role) -> list[Sight]:
        """Returns the workers of some roles, draining ones included, in the order they joined."""
        return [sight for sight in self.sights.values() if sight.role in roles]

    def ever(self, *roles: Role) -> list[Sight]:
        """Returns the workers of some roles, those that left too."""
        return [*self.of(*roles), *(sight for sight in self.gone if sight.role in roles)]

    def count(self, *roles: Role) -> int:
        """Returns how many of them take new work."""
        return sum(not sight.is_draining for sight in self.of(*roles))

    def add(self, role: Role, ready_in_s: float = 0.0) -> None:
        """Starts a worker, which joins when it is ready: loading a model takes its time."""
        self.starting.append(role)
        self._loop.after(ready_in_s, self._ready, role)

    def drain(self, name: str, then: Callable[[], None] = lambda: None) -> None:
        """Gives a worker no new work; it leaves when it is idle, and `then` is called.

        The last worker that decodes cannot be drained: raises ValueError. Again it does nothing.
        """
        sight = self.sights[name]
        if sight.is_draining:
            return
        if sight.role is not Role.PREFILL and self.count(Role.DECODE, Role.AGGREGATED) == 1:
            raise ValueError(f"{name} is the last worker that decodes")
        sight.is_draining = True
        self.views.touch(sight)
        self._leaving[name] = then
        self._on_change()
        self.settle()

    def flip(self, name: str, role: Role, ready_in_s: float = 0.0) -> None:
        """Drains a worker and lets it come back in another role: the model is loaded already.

        Its cache is lost, as it is in the mesh, where a role is a process.
        """
        self.drain(name, partial(self.add, role, ready_in_s))

    def settle(self) -> None:
        """Lets those leave that drained and are idle; call when something ended."""
        for name in [name for name in self._leaving if self.sights[name].is_idle]:
            self._leave(name)

    def learn_transfer(self, tokens: int, added_s: float) -> None:
        """Learns what moving KV added to computing it, as decode workers do; all are alike here."""
        kv_bytes = tokens * self._spec.hardware.kv_bytes_per_token
        self._transfer.update((1.0, kv_bytes), added_s)

    def learn_length(self, output_tokens: int) -> None:
        """Learns how long an answer was; now and then routers hear what was learned."""
        self._length.add(output_tokens)
        self._answers += 1
        if self._answers % _PUBLISH_EVERY == 0:
            for sight in self.sights.values():
                sight.costs = self._known(sight.costs)
                self.views.touch(sight)

    def _known(self, costs: CostModel) -> CostModel:
        first, each = self._transfer.coefficients
        return replace(costs, transfer=(first, each), output_tokens=self._length.tokens)

    def states(self) -> Iterator[WorkerState]:
        """Yields the state of each worker."""
        return (sight.state() for sight in self.sights.values())

    def _ready(self, role: Role) -> None:
        self.starting.remove(role)
        self._join(role)
        self._on_change()

    def _join(self, role: Role) -> None:
        number, self._counts[role] = self._counts[role], self._counts[role] + 1
        name = f"{role}-{number}"
        worker = self._worker(role, name)
        costs = self._known(self._spec.known_costs(role))
        sight = Sight(name, role, worker, costs, self.views.changed, self._loop.now_s)
        self.sights[name] = sight
        self._index.add(name)
        self.views.add(sight)

    def _worker(self, role: Role, name: str) -> SimWorker:
        spec, index = self._spec, self._made
        self._made += 1
        pool = SimPool(
            spec.pool_tokens(role) // self._block_tokens,
            self._block_tokens,
            partial(self._index.store, name),
            partial(self._index.remove, name),
        )
        return SimWorker(
            index,
            self._clock(role),
            spec.of(role).costs,
            pool,
            self._events,
            token_budget=spec.prefill_budget if role is Role.PREFILL else spec.mixed_budget,
            max_running=spec.max_running,
            changed=self.views.changed,
        )

    def way_s(self, idle_s: float) -> float:
        """Returns what a message's way takes now that takes `idle_s` where nobody computes."""
        sharing = self._spec.sharing
        if self._host is None or sharing is None or not self._host.is_busy:
            return idle_s
        return idle_s * sharing.messages

    def _clock(self, role: Role) -> Clock:
        sharing = self._spec.sharing
        if self._host is None or sharing is None:
            return self._loop
        return self._host.clock(sharing.prefill if role is Role.PREFILL else sharing.decode)

    def _leave(self, name: str) -> None:
        sight = self.sights.pop(name)
        sight.worker.pool.check()
        sight.left_s = self._loop.now_s
        self.gone.append(sight)
        self.views.remove(sight)
        self._index.drop(name)
        then = self._leaving.pop(name)
        then()
        self._on_change()
