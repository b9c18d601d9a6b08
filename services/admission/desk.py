"""Hands out permits: drives the door on the event loop, and lets those wait who have to."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from baton.errors import BatonError, OverloadedError, UnavailableError
from services.admission.door import (
    NO_WORKER,
    NO_WORKER_RETRY_S,
    Called,
    Dismissed,
    Door,
    Turned,
)
from services.admission.ladder import UNDEGRADED, Degradation
from services.admission.ledger import Elsewhere, Permit, Pools
from services.admission.policy import (
    DECODE_SATURATED,
    QUEUE_FULL,
    TENANT_LIMIT,
    TTFT_UNATTAINABLE,
    MeshLoad,
    PermitRequest,
)
from services.admission.waiting import Waiter

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.1
"""Who cannot be in time any more is told so within this time."""

_WHY = {
    QUEUE_FULL: "the queue for permits is full",
    TTFT_UNATTAINABLE: "the target for the time to first token cannot be met",
    DECODE_SATURATED: "the decode workers are as busy as the target for the time per token allows",
    TENANT_LIMIT: "the tenant is at its limit",
}

OnWait = Callable[[int], Awaitable[None]]
"""Told, once, how many are ahead of a request that has to wait."""


@dataclass(slots=True)
class Grant:
    """A permit in somebody's hands; `waited_s` is how long it took.

    `ahead` as of Door.ahead at that moment. `output_tokens` is set by whoever learns that the
    answer ended by itself.
    """

    permit: Permit
    waited_s: float
    predicted_ttft_s: float = 0.0
    degradation: Degradation = UNDEGRADED
    ahead: int = 0
    output_tokens: int | None = None


class _Ticket:
    """A waiting request: it gets a permit or an error, whatever happens to its task."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.called: Called | None = None
        self.error: BatonError | None = None
        self.done = asyncio.Event()


class PermitDesk:
    """The one place where permits are granted and taken back; give `run` to the task group."""

    def __init__(self, door: Door, clock: Callable[[], float] = time.monotonic) -> None:
        self.door = door
        self._clock = clock
        self._tickets: dict[Waiter, _Ticket] = {}
        self._emptied = asyncio.Event()

    @property
    def now_s(self) -> float:
        """The desk's clock."""
        return self._clock()

    @property
    def load(self) -> MeshLoad:
        """The load now, with everybody who waits."""
        return self.door.load(self._clock())

    @property
    def is_empty(self) -> bool:
        """True when nobody holds a permit or waits for one."""
        return self.door.is_empty

    async def run(self) -> None:
        """Turns those away who waited too long, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.sweep()

    def sweep(self) -> None:
        """Turns those away who cannot be in time any more, and calls in who may start by now."""
        for late in self.door.sweep(self._clock()):
            self._fail(self._tickets.pop(late.waiter), rejection(late.turned))
        self._call_in()

    async def wait_empty(self) -> None:
        """Returns once nobody holds a permit or waits for one."""
        while not self.is_empty:
            self._emptied.clear()
            await self._emptied.wait()

    def set_pools(self, pools: Pools) -> None:
        """Takes the workers that accept work; who waits for the last one to go fails."""
        self.door.set_pools(self._clock(), pools)
        if not pools.decode.workers:
            for ticket in list(self._tickets.values()):
                self._dismiss(ticket, rejection(Turned(NO_WORKER, NO_WORKER_RETRY_S)))
        self._call_in()

    def set_others(self, elsewhere: Elsewhere, quota: int | None) -> None:
        """Takes what other admission services granted, and how much this one may."""
        self.door.ledger.elsewhere = elsewhere
        self.door.ledger.quota = quota
        self._call_in()

    def totals(self) -> Elsewhere:
        """Returns what the own permits amount to, to tell other admission services."""
        return self.door.ledger.totals(self._clock())

    @asynccontextmanager
    async def admit(self, request: PermitRequest, on_wait: OnWait) -> AsyncIterator[Grant]:
        """Lets a request in or turns it away; the permit lives as long as the block.

        Raises OverloadedError when rejected, at once or from the queue, and UnavailableError
        (NO_WORKER) when there is no decode worker, or the last one left meanwhile.
        """
        grant = await self._grant(request, on_wait)
        grant.ahead = self.door.ahead()
        try:
            yield grant
        finally:
            self._release(grant.permit, grant.output_tokens)

    async def _grant(self, request: PermitRequest, on_wait: OnWait) -> Grant:
        arrived_s = self._clock()
        if request.has_started:
            return Grant(self.door.take_in(arrived_s, request), 0.0)
        answer = self.door.arrive(arrived_s, request)
        if isinstance(answer, Turned):
            raise rejection(answer)
        called = await self._wait_turn(answer, on_wait)
        waited_s = self._clock() - arrived_s
        return Grant(called.permit, waited_s, answer.predicted_ttft_s, called.degradation)

    def prefill_done(self, grant: Grant) -> None:
        """Notes that the permit's prompt is computed."""
        self.door.prefill_done(grant.permit, self._clock())
        self._call_in()

    async def _wait_turn(self, waiter: Waiter, on_wait: OnWait) -> Called:
        ticket = self._tickets[waiter] = _Ticket(waiter)
        is_taken = False
        try:
            self._call_in()
            if not ticket.done.is_set():
                await on_wait(self.door.room.position(waiter))
                await ticket.done.wait()
            if ticket.error is not None:
                raise ticket.error
            assert ticket.called is not None
            is_taken = True
            return ticket.called
        finally:
            if not is_taken:
                self._withdraw(ticket)

    def _withdraw(self, ticket: _Ticket) -> None:
        """Ends a wait that brought nothing; a permit that came too late goes back."""
        if ticket.called is not None:
            self._release(ticket.called.permit)
        elif self._tickets.pop(ticket.waiter, None) is not None:
            self.door.leave(ticket.waiter)
            # Whoever stood behind it may have room where it had not.
            self._call_in()
        self._emptied.set()

    def _dismiss(self, ticket: _Ticket, error: BatonError) -> None:
        del self._tickets[ticket.waiter]
        self.door.leave(ticket.waiter)
        self._fail(ticket, error)

    def _fail(self, ticket: _Ticket, error: BatonError) -> None:
        ticket.error = error
        ticket.done.set()

    def _release(self, permit: Permit, output_tokens: int | None = None) -> None:
        self.door.release(permit, self._clock(), output_tokens)
        self._call_in()
        self._emptied.set()

    def _call_in(self) -> None:
        for called in self.door.call_in(self._clock()):
            ticket = self._tickets.pop(called.waiter)
            if isinstance(called, Dismissed):
                self._fail(ticket, rejection(called.turned))
                continue
            ticket.called = called
            ticket.done.set()


def rejection(turned: Turned) -> BatonError:
    """Returns the error that tells a client why it was turned away, and when to come back."""
    if turned.reason == NO_WORKER:
        return UnavailableError(
            "no decode worker is up; start one or retry",
            reason=NO_WORKER,
            retry_after_s=turned.retry_after_s,
        )
    why, advice = _WHY[turned.reason], "or with a higher priority"
    if turned.reason == TENANT_LIMIT:
        advice = "and not with more at once"
    return OverloadedError(
        f"{why}; retry in {turned.retry_after_s:.2f} s {advice}",
        reason=turned.reason,
        retry_after_s=turned.retry_after_s,
    )
