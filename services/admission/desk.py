"""Hands out permits: asks the policy, keeps the ledger, and lets those wait who have to."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from baton.errors import BatonError, OverloadedError, UnavailableError
from services.admission.ledger import Permit, PermitLedger, Waiter
from services.admission.policy import (
    QUEUE_FULL,
    AdmissionPolicy,
    MeshLoad,
    PermitRequest,
    Reject,
    Verdict,
    Wait,
)

logger = logging.getLogger(__name__)

NO_WORKER_RETRY_S = 1.0

OnWait = Callable[[int], Awaitable[None]]
"""Told, once, how many are ahead of a request that has to wait."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A permit in somebody's hands; `waited_s` is how long it took."""

    permit: Permit
    waited_s: float


class _Ticket:
    """A waiting request: it gets a permit or an error, whatever happens to its task."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.permit: Permit | None = None
        self.error: BatonError | None = None
        self.called = asyncio.Event()


class PermitDesk:
    """The one place where permits are granted and taken back."""

    def __init__(
        self,
        policy: AdmissionPolicy,
        ledger: PermitLedger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._ledger = ledger
        self._clock = clock
        self._tickets: dict[tuple[int, int], _Ticket] = {}
        self._emptied = asyncio.Event()

    @property
    def load(self) -> MeshLoad:
        """The load now, with everybody who waits."""
        return self._ledger.load()

    @property
    def is_empty(self) -> bool:
        """True when nobody holds a permit or waits for one."""
        return not self._ledger.permits and not self._ledger.waiting

    async def wait_empty(self) -> None:
        """Returns once nobody holds a permit or waits for one."""
        while not self.is_empty:
            self._emptied.clear()
            await self._emptied.wait()

    def set_workers(self, prefill_workers: int, decode_workers: int) -> None:
        """Takes the number of workers that accept work; who waits for the last one to go fails."""
        self._ledger.set_workers(self._clock(), prefill_workers, decode_workers)
        if not decode_workers:
            for ticket in list(self._tickets.values()):
                self._dismiss(ticket, _no_worker())
        self._call_next()

    def decide(self, request: PermitRequest) -> Verdict:
        """Returns what would happen to the request now. Raises UnavailableError (NO_WORKER)."""
        load = self._ledger.load(request.priority)
        if not load.capacity:
            raise _no_worker()
        return self._policy.decide(self._clock(), load, request)

    @asynccontextmanager
    async def admit(
        self, verdict: Verdict, request: PermitRequest, on_wait: OnWait
    ) -> AsyncIterator[Grant]:
        """Carries out a verdict just made by `decide`; the permit lives as long as the block.

        Raises OverloadedError when rejected, at once or from the queue, and UnavailableError
        (NO_WORKER) when the last decode worker left meanwhile.
        """
        if isinstance(verdict, Reject):
            raise _rejection(verdict)
        arrived_s = self._clock()
        if isinstance(verdict, Wait):
            permit = await self._wait_turn(request, on_wait)
        else:
            permit = self._ledger.grant(arrived_s)
        try:
            yield Grant(permit, self._clock() - arrived_s)
        finally:
            self._release(permit)

    def prefill_done(self, grant: Grant) -> None:
        """Notes that the permit's prompt is computed."""
        self._ledger.prefill_done(grant.permit, self._clock())

    async def _wait_turn(self, request: PermitRequest, on_wait: OnWait) -> Permit:
        ticket = _Ticket(self._ledger.enqueue(request.priority))
        self._tickets[ticket.waiter.rank] = ticket
        self._trim()
        is_taken = False
        try:
            if ticket.error is None:
                await on_wait(self._ledger.position(ticket.waiter))
                await ticket.called.wait()
            if ticket.error is not None:
                raise ticket.error
            assert ticket.permit is not None
            is_taken = True
            return ticket.permit
        finally:
            if not is_taken:
                self._withdraw(ticket)

    def _withdraw(self, ticket: _Ticket) -> None:
        """Ends a wait that brought nothing; a permit that came too late goes back."""
        if ticket.permit is not None:
            self._release(ticket.permit)
        elif self._tickets.pop(ticket.waiter.rank, None) is not None:
            self._ledger.leave(ticket.waiter)
        self._emptied.set()

    def _trim(self) -> None:
        rejected = self._policy.trim(self._ledger.load())
        last = self._ledger.last()
        if rejected is not None and last is not None:
            self._dismiss(self._tickets[last.rank], _rejection(rejected))

    def _dismiss(self, ticket: _Ticket, error: BatonError) -> None:
        del self._tickets[ticket.waiter.rank]
        self._ledger.leave(ticket.waiter)
        ticket.error = error
        ticket.called.set()

    def _release(self, permit: Permit) -> None:
        self._ledger.release(permit, self._clock())
        self._call_next()
        self._emptied.set()

    def _call_next(self) -> None:
        while (waiter := self._ledger.next_up()) is not None:
            ticket = self._tickets.pop(waiter.rank)
            self._ledger.leave(waiter)
            ticket.permit = self._ledger.grant(self._clock())
            ticket.called.set()


def _no_worker() -> UnavailableError:
    return UnavailableError(
        "no decode worker is up; start one or retry",
        reason="NO_WORKER",
        retry_after_s=NO_WORKER_RETRY_S,
    )


def _rejection(verdict: Reject) -> OverloadedError:
    why = (
        "the queue for permits is full"
        if verdict.reason == QUEUE_FULL
        else f"the predicted time to first token of {verdict.predicted_ttft_s:.2f} s is over target"
    )
    return OverloadedError(
        f"{why}; retry in {verdict.retry_after_s:.2f} s or with a higher priority",
        reason=verdict.reason,
        retry_after_s=verdict.retry_after_s,
    )
