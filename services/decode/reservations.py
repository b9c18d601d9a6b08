"""Reservations and the only safe ways to take them back from a prefill worker.

A reservation that a prefill worker knows about may be written to until that worker said that it
stopped: its end frame comes only after its last write. Where that word never comes, because the
link broke or the worker hangs, the worker is disconnected and the blocks are kept out of use for
QUARANTINE_S. The time is what protects them: one-sided writes (RDMA, or CMA on one host) need no
consent of this process, and a broken link does not prove the writer dead. A writer that lives on
behind a partition sees the same link break by keepalive within 4 s, cancels what belonged to it
and stops writing once the writes under way ended, so 10 s are enough unless its whole process
stood still for longer than that. Local prefill and other attempts use other blocks meanwhile.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from baton.engine.base import Engine, Reservation
from baton.errors import BatonError, InternalError, TransferError, UnavailableError
from baton.kv.transfer import KvTransport
from baton.requests import EngineRequest
from baton.rpc.link import LinkCall
from baton.telemetry.names import KV_RESERVATIONS
from baton.telemetry.providers import Attributes, Telemetry
from baton.v1 import prefill_link_pb2
from services.decode.leases import LeaseBook, LeaseState

logger = logging.getLogger(__name__)

QUARANTINE_S = 10.0

MARGIN_S = 5.0
"""What a state may take beyond its own timeouts on a busy machine."""

RESERVED_S = 2 * 5.0 + MARGIN_S
"""Making a pair, twice when the prefill worker forgot it. See services/decode/peers.py."""

EXPOSED_S = 120.0 + 5.0 + MARGIN_S
"""The prefill and its proof. See services/decode/remote.py."""

STOPPING_S = 10.0 + MARGIN_S
"""A cancel's confirmation. See baton/rpc/link.py."""

AUDIT_EVERY_S = 1.0

PrefillCall = LinkCall[prefill_link_pb2.PrefillCommand, prefill_link_pb2.PrefillEvent]

_UNCONFIRMED = frozenset({"PEER_LOST", "PEER_STUCK", "WRITE_STUCK", "MOVER_STUCK"})


def proves_end(error: BatonError) -> bool:
    """Tells whether a prefill that failed so cannot write any more.

    A worker that declined never began and one that failed in order has stopped; a lost or stuck
    one, and one that failed by a bug, may still write.
    """
    return error.reason not in _UNCONFIRMED and not isinstance(error, InternalError)


class Reservations:
    """Every reservation that this worker's prefill workers may write to, and its one way out."""

    def __init__(
        self, engine: Engine, transport: KvTransport, quarantine_s: float = QUARANTINE_S
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._quarantine_s = quarantine_s
        self._tasks: asyncio.TaskGroup | None = None
        self._overdue: frozenset[str] = frozenset()
        self.leases = LeaseBook(
            {
                LeaseState.RESERVED: RESERVED_S,
                LeaseState.EXPOSED: EXPOSED_S,
                LeaseState.STOPPING: STOPPING_S,
                LeaseState.QUARANTINED: quarantine_s + MARGIN_S,
            }
        )

    async def run(self) -> None:
        """Takes back what is reclaimed until cancelled; then the engine's stop frees the rest."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await asyncio.sleep(AUDIT_EVERY_S)
                self._audit()

    def observe(self, telemetry: Telemetry) -> None:
        """Registers the gauge of reservations by state."""
        telemetry.gauge(KV_RESERVATIONS, self._readings)

    def reserve(self, request: EngineRequest) -> Reservation:
        """Pins blocks for a prompt. Raises as `Engine.reserve` does."""
        reservation = self._engine.reserve(request)
        self.leases.open(reservation.destination.transfer_id)
        return reservation

    def expose(self, reservation: Reservation) -> None:
        """From now on a worker may write to the reservation."""
        self.leases.move(reservation.destination.transfer_id, LeaseState.EXPOSED)

    def release(self, reservation: Reservation) -> None:
        """Frees a reservation that nobody writes to."""
        self._transport.forget(reservation.destination.transfer_id)
        self._free(reservation)

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        """Ends a proven reservation by caching what arrived, the KV of `input_ids`."""
        self.leases.end(reservation.destination.transfer_id)
        self._engine.keep(reservation, input_ids)

    def taken(self, reservation: Reservation) -> None:
        """Ends a proven reservation that the engine took over."""
        self.leases.end(reservation.destination.transfer_id)

    def reclaim(self, reservation: Reservation, call: PrefillCall, agent: str) -> None:
        """Stops the prefill `call` by `agent` and frees the reservation once that is safe.

        Does not wait: whoever needed the prefill goes on elsewhere.
        """
        self._transport.forget(reservation.destination.transfer_id)
        self.leases.move(reservation.destination.transfer_id, LeaseState.STOPPING)
        self._background(self._reclaim(reservation, call, agent))

    def quarantine(self, reservation: Reservation, agent: str) -> None:
        """Frees a reservation to which `agent` may still write, after its time. Does not wait."""
        self._transport.forget(reservation.destination.transfer_id)
        self._background(self._quarantine(reservation, agent))

    async def _reclaim(self, reservation: Reservation, call: PrefillCall, agent: str) -> None:
        try:
            await call.cancel()
        except UnavailableError as error:
            if not proves_end(error):
                await self._quarantine(reservation, agent)
                return
        self._free(reservation)

    async def _quarantine(self, reservation: Reservation, agent: str) -> None:
        self.leases.move(reservation.destination.transfer_id, LeaseState.QUARANTINED)
        logger.warning(
            "reservation quarantined request_id=%s agent=%s for_s=%g",
            reservation.request_id,
            agent,
            self._quarantine_s,
        )
        started_s = asyncio.get_running_loop().time()
        try:
            await self._transport.disconnect(agent)
        except TransferError as error:
            logger.warning("peer not disconnected agent=%s: %s", agent, error.message)
        spent_s = asyncio.get_running_loop().time() - started_s
        await asyncio.sleep(self._quarantine_s - spent_s)
        self._free(reservation)

    def _free(self, reservation: Reservation) -> None:
        self.leases.end(reservation.destination.transfer_id)
        self._engine.release(reservation)

    def _audit(self) -> None:
        """Logs each reservation once that outlived its state's deadline."""
        overdue = frozenset(self.leases.overdue())
        for transfer_id in overdue - self._overdue:
            state = self.leases.state(transfer_id)
            logger.error("reservation is overdue transfer=%s state=%s", transfer_id, state)
        self._overdue = overdue

    def _readings(self) -> Iterator[tuple[float, Attributes]]:
        for state, count in self.leases.counts().items():
            yield count, {"state": state.value}
        # Zero unless a deadline was missed: the one to alert on.
        yield len(self.leases.overdue()), {"state": "overdue"}

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None, "reservations are reclaimed only while `run` runs"
        self._tasks.create_task(work)
