"""Load on a router, from a process of its own: `python -m bench.load --address ...`.

Requests share one link, as those of a gateway or of `baton.client` do; with --streams each is a
Generate call of its own. Prints one JSON line with what the measured window showed.
"""

import asyncio
import json
import time
from itertools import cycle
from typing import Annotated, Any, Protocol

import grpc
import typer
import uvloop

from baton.collector import quieten_collector
from baton.errors import BatonError
from baton.rpc.channels import open_channel
from baton.rpc.link import Link, LinkCall
from baton.rpc.links import ROUTER_LINK
from baton.v1 import router_pb2, types_pb2
from bench.drive import LoadPlan, LoadResult, Outcome, drive
from bench.prompts import PromptPlan

METHOD = "/baton.v1.RouterService/Generate"
_TIMEOUT_S = 120.0
_STREAMS_PER_CHANNEL = 64


class Target(Protocol):
    """A router under load."""

    async def send(self, number: int, outcome: Outcome) -> None:
        """Runs one request to its end."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class _Reception:
    """Writes down what comes back for one request on a link; see baton.rpc.link.Receiver."""

    def __init__(self, outcome: Outcome) -> None:
        self.call: LinkCall[Any, Any] | None = None
        self.has_completed = False
        self.error: BatonError | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outcome = outcome

    def deliver(self, event: Any, kind: str) -> None:
        if kind == "complete":
            self.has_completed = True
        elif event.chunk.output_ids:
            _count(self._outcome, len(event.chunk.output_ids))
        if self.call is not None:
            self.call.consumed(1)

    def end(self, error: BatonError | None) -> None:
        self.error = error
        if not self.ended.done():
            self.ended.set_result(None)


class LinkTarget:
    """A router, as a gateway sees it: all requests on one link. Close it after use."""

    def __init__(self, address: str, prompts: PromptPlan) -> None:
        self._prompts = prompts
        self._link: Link[router_pb2.RouterCommand, router_pb2.RouterEvent] = Link(
            ROUTER_LINK, address
        )

    async def send(self, number: int, outcome: Outcome) -> None:
        """Runs one request to its end."""
        start = router_pb2.RouterCommand()
        start.start.MergeFromString(self._prompts.request(number))
        reception = _Reception(outcome)
        call = self._link.open(start, timeout_s=_TIMEOUT_S, receiver=reception)
        reception.call = call
        try:
            await reception.ended
        finally:
            call.request_cancel()
        if reception.error is not None:
            outcome.error = reception.error.reason
        elif not reception.has_completed:
            outcome.error = "NO_COMPLETE"

    async def close(self) -> None:
        """Closes the link."""
        await self._link.close()


class StreamTarget:
    """A router, as many clients see it: each request is a call. Close it after use."""

    def __init__(self, address: str, prompts: PromptPlan, channels: int = 1) -> None:
        self._prompts = prompts
        self._channels = [open_channel(address) for _ in range(channels)]
        self._calls = cycle([self._generate(channel) for channel in self._channels])

    async def send(self, number: int, outcome: Outcome) -> None:
        """Runs one request to its end."""
        await self.run(self._prompts.request(number), outcome)

    async def run(self, request: bytes, outcome: Outcome, timeout_s: float = _TIMEOUT_S) -> None:
        """Runs one serialised request to its end."""
        has_completed = False
        try:
            async for response in next(self._calls)(request, timeout=timeout_s):
                if response.HasField("complete"):
                    has_completed = True
                    mode = response.complete.placement.prefill_mode
                    outcome.is_local = mode == types_pb2.PREFILL_MODE_LOCAL
                elif response.chunk.output_ids:
                    _count(outcome, len(response.chunk.output_ids))
        except grpc.aio.AioRpcError as error:
            outcome.error = error.code().name
        if not has_completed and not outcome.error:
            outcome.error = "NO_COMPLETE"

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()

    @staticmethod
    def _generate(channel: grpc.aio.Channel) -> Any:
        # Requests are bytes already and need no serialiser.
        return channel.unary_stream(METHOD, None, router_pb2.GenerateResponse.FromString)


def _count(outcome: Outcome, tokens: int) -> None:
    outcome.last_s = time.monotonic()
    if not outcome.tokens:
        outcome.first_s = outcome.last_s
    outcome.tokens += tokens
    outcome.messages += 1


async def load_router(
    address: str,
    prompts: PromptPlan,
    plan: LoadPlan,
    watched: int | None = None,
    *,
    as_streams: bool = False,
) -> LoadResult:
    """Loads the router at `address`; `watched` is the process whose CPU time is taken."""
    target: Target = LinkTarget(address, prompts)
    if as_streams:
        channels = 1 if plan.rate_per_s else -(-plan.concurrency // _STREAMS_PER_CHANNEL)
        target = StreamTarget(address, prompts, channels)
    try:
        return await drive(target.send, plan, watched)
    finally:
        await target.close()


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    address: Annotated[str, typer.Option(help="host:port of the router.")],
    seconds: Annotated[float, typer.Option(help="Measured time. Seconds.")] = 10.0,
    concurrency: Annotated[int, typer.Option(help="Requests outstanding, closed loop.")] = 32,
    rate: Annotated[float, typer.Option(help="Requests per second, open loop; 0 closed.")] = 0.0,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 64,
    shared_tokens: Annotated[int, typer.Option(help="Of them shared in a group.")] = 0,
    groups: Annotated[int, typer.Option(help="Groups of prompts.")] = 1,
    output_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 16,
    seed: Annotated[int, typer.Option(help="Makes the prompts and arrivals.")] = 0,
    watch: Annotated[int, typer.Option(help="Process whose CPU time is taken; 0 none.")] = 0,
    streams: Annotated[bool, typer.Option(help="One Generate call per request.")] = False,
) -> None:
    """Load a router and print what came back."""
    prompts = PromptPlan(prompt_tokens, output_tokens, shared_tokens, groups, seed)
    plan = LoadPlan(seconds, concurrency, rate or None, seed)
    quieten_collector()
    result = uvloop.run(load_router(address, prompts, plan, watch or None, as_streams=streams))
    print(json.dumps(result.figures()), flush=True)


if __name__ == "__main__":
    main()
