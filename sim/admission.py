"""Permits in simulated time: admission's own policy and ledger, with callbacks for coroutines."""

from collections.abc import Callable
from typing import Protocol

from services.admission.ledger import Permit, PermitLedger, Waiter
from services.admission.policy import AdmissionPolicy, PermitRequest, Reject, Wait
from sim.engine.events import EventLoop
from sim.observe import MeshState

Granted = Callable[[Permit], None]
Rejected = Callable[[str], None]


class Desk(Protocol):
    """The door of the simulated mesh."""

    def arrive(self, request: PermitRequest, granted: Granted, rejected: Rejected) -> None:
        """Decides about a request; one of the two is called exactly once, now or later."""
        ...

    def prefill_done(self, permit: Permit) -> None:
        """Notes that the permit's prompt is computed."""
        ...

    def release(self, permit: Permit) -> None:
        """Ends a permit."""
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
        granted(Permit(0.0))

    def prefill_done(self, permit: Permit) -> None:
        """Does nothing."""

    def release(self, permit: Permit) -> None:
        """Does nothing."""

    def resize(self, prefill_workers: int, decode_workers: int) -> None:
        """Does nothing."""


class SimDesk:
    """The permit desk: asks the policy, keeps the ledger, lets those wait who have to."""

    def __init__(self, loop: EventLoop, policy: AdmissionPolicy) -> None:
        self._loop = loop
        self._policy = policy
        self._ledger = PermitLedger()
        self._tickets: dict[tuple[int, int], tuple[Granted, Rejected]] = {}

    def arrive(self, request: PermitRequest, granted: Granted, rejected: Rejected) -> None:
        """Decides about a request; one of the two is called exactly once, now or later."""
        now_s = self._loop.now_s
        verdict = self._policy.decide(now_s, self._ledger.load(request.priority), request)
        if isinstance(verdict, Reject):
            rejected(verdict.reason)
        elif isinstance(verdict, Wait):
            waiter = self._ledger.enqueue(request.priority)
            self._tickets[waiter.rank] = (granted, rejected)
            self._trim()
        else:
            granted(self._ledger.grant(now_s))

    def prefill_done(self, permit: Permit) -> None:
        """Notes that the permit's prompt is computed."""
        self._ledger.prefill_done(permit, self._loop.now_s)

    def resize(self, prefill_workers: int, decode_workers: int) -> None:
        """See `Desk`; a larger pool calls waiting ones in."""
        self._ledger.set_workers(self._loop.now_s, prefill_workers, decode_workers)
        self._call_in()

    def release(self, permit: Permit) -> None:
        """Ends a permit and calls the next one in."""
        self._ledger.release(permit, self._loop.now_s)
        self._call_in()

    def _call_in(self) -> None:
        while (waiter := self._ledger.next_up()) is not None:
            granted, _ = self._take(waiter)
            granted(self._ledger.grant(self._loop.now_s))

    def _trim(self) -> None:
        verdict, last = self._policy.trim(self._ledger.load()), self._ledger.last()
        if verdict is not None and last is not None:
            _, rejected = self._take(last)
            rejected(verdict.reason)

    def _take(self, waiter: Waiter) -> tuple[Granted, Rejected]:
        self._ledger.leave(waiter)
        return self._tickets.pop(waiter.rank)
