"""Permits in simulated time: admission's own door, with callbacks for coroutines."""

from collections.abc import Callable
from typing import Protocol

from services.admission.door import Dismissed, Door, Turned
from services.admission.ledger import Permit, Pools
from services.admission.policy import DecodePool, PermitRequest
from services.admission.waiting import Waiter
from sim.observe import MeshState, Role

Granted = Callable[[Permit], None]
Rejected = Callable[[str], None]

_LATE_S = 1e-6


class Desk(Protocol):
    """The door of the simulated mesh."""

    def arrive(self, request: PermitRequest, granted: Granted, rejected: Rejected) -> None:
        """Decides about a request; one of the two is called exactly once, now or later."""
        ...

    def prefill_done(self, permit: Permit) -> None:
        """Notes that the permit's prompt is computed."""
        ...

    def release(self, permit: Permit, output_tokens: int | None = None) -> None:
        """Ends a permit; `output_tokens` when its answer ended by itself."""
        ...

    def resize(self, prefill_workers: int, decode_workers: int) -> None:
        """Takes the sizes of the pools; called once before the first request, then at changes."""
        ...


MakeDesk = Callable[[MeshState], Desk]
"""Makes the desk of one run; it may ask the mesh for its true state, now and later."""


class OpenDoor:
    """No admission at all: everybody enters at once."""

    def arrive(self, request: PermitRequest, granted: Granted, rejected: Rejected) -> None:
        """Grants."""
        granted(Permit(request))

    def prefill_done(self, permit: Permit) -> None:
        """Does nothing."""

    def release(self, permit: Permit, output_tokens: int | None = None) -> None:
        """Does nothing."""

    def resize(self, prefill_workers: int, decode_workers: int) -> None:
        """Does nothing."""


class SimDesk:
    """Drives the door. The costs are those that a fleet which has run for a while knows."""

    def __init__(self, mesh: MeshState, door: Door) -> None:
        self.door = door
        self._loop = mesh.loop
        self._spec = mesh.spec
        self._tickets: dict[Waiter, tuple[Granted, Rejected]] = {}

    def arrive(self, request: PermitRequest, granted: Granted, rejected: Rejected) -> None:
        """See `Desk`."""
        answer = self.door.arrive(self._loop.now_s, request)
        if isinstance(answer, Turned):
            rejected(answer.reason)
            return
        self._tickets[answer] = (granted, rejected)
        self._call_in()
        if answer in self._tickets:
            self._loop.at(answer.due_s + _LATE_S, self._expire, answer)

    def prefill_done(self, permit: Permit) -> None:
        """See `Desk`."""
        self.door.prefill_done(permit, self._loop.now_s)
        self._call_in()

    def resize(self, prefill_workers: int, decode_workers: int) -> None:
        """See `Desk`; a larger pool calls waiting ones in."""
        spec = self._spec
        costs, kv_tokens = spec.known_costs(Role.DECODE), spec.pool_tokens(Role.DECODE)
        computing = Role.PREFILL if prefill_workers else Role.DECODE
        decode = DecodePool(decode_workers, costs, kv_tokens=kv_tokens)
        pools = Pools(prefill_workers, decode, spec.known_costs(computing))
        self.door.set_pools(self._loop.now_s, pools)
        self._call_in()

    def release(self, permit: Permit, output_tokens: int | None = None) -> None:
        """See `Desk`; the next ones are called in."""
        self.door.release(permit, self._loop.now_s, output_tokens)
        self._call_in()

    def _call_in(self) -> None:
        for called in self.door.call_in(self._loop.now_s):
            granted, rejected = self._tickets.pop(called.waiter)
            if isinstance(called, Dismissed):
                rejected(called.turned.reason)
            else:
                granted(called.permit)

    def _expire(self, waiter: Waiter) -> None:
        if waiter not in self._tickets:
            return
        for late in self.door.sweep(self._loop.now_s):
            self._tickets.pop(late.waiter)[1](late.turned.reason)
        self._call_in()
