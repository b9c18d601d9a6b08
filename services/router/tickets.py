"""A client that runs its request at the decode worker itself: a ticket out, reports back.

Tokens then do not pass the router, which still checks, asks for the permit, places and counts the
request: all of that lives as long as the request on the client's link.
"""

from baton.errors import InvalidRequestError
from baton.v1 import router_pb2
from services.router.answer import Figures
from services.router.outlet import RouterCall
from services.router.timing import tpot_s


class TicketCall:
    """The request of such a client."""

    def __init__(self, call: RouterCall) -> None:
        self._call = call

    async def send(self, ticket: router_pb2.DirectTicket) -> None:
        """Hands the ticket out."""
        await self._call.send(router_pb2.RouterEvent(ticket=ticket))

    async def next_report(self) -> router_pb2.DirectReport:
        """Waits for the client to tell how it goes on. Raises InvalidRequestError."""
        command = await self._call.next_command()
        if not command.HasField("report"):
            raise InvalidRequestError("a request with a ticket takes reports only", field="command")
        return command.report


def reported(report: router_pb2.DirectReport) -> Figures:
    """Returns the figures of a request as its client saw them; without parts."""
    return Figures(
        parts_ns={},
        ttft_s=report.ttft_s,
        tpot_s=tpot_s(report.ttft_s, report.total_s, report.output_tokens),
        total_s=report.total_s,
    )
