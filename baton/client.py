"""A small async client of the router, for the command line, tests and Python programs.

    async with RouterClient("127.0.0.1:7411") as client:
        async for part in client.generate(Prompt(text="Once")):
            if isinstance(part, Chunk):
                print(part.text, end="")

Errors of the mesh arrive as the classes of baton/errors.py, with reason, field and retry time.
All requests of a client share one stream to the router (RouterService.Link): a gateway that sends
many pays for messages and not for a stream each. A reader that stalls stops its own answer only.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from baton.errors import BatonError, InternalError, InvalidRequestError, UnavailableError
from baton.requests import FinishReason, Priority, SamplingParams
from baton.rpc.channels import MAX_MESSAGE_BYTES, open_channel
from baton.rpc.link import PEER_LOST, LinkPool
from baton.rpc.links import DECODE_LINK, ROUTER_LINK
from baton.rpc.pace import Pace
from baton.rpc.packed import put_ids
from baton.rpc.sampling import sampling_message
from baton.rpc.status import duration, from_rpc_error
from baton.v1 import decode_link_pb2, router_pb2, router_pb2_grpc, types_pb2

ROUTER_UNREACHABLE = "ROUTER_UNREACHABLE"
"""Reason of the UnavailableError for an address where no router answers."""

_DEFAULT_TIMEOUT_S = 600.0
_MAX_REQUEST_BYTES = MAX_MESSAGE_BYTES - (64 << 10)
_QUERY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to answer; exactly one of text, turns and input_ids is given."""

    text: str | None = None
    turns: tuple[Turn, ...] = ()
    input_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How to answer. `sampling` None takes the mesh's defaults; times are in seconds.

    `ttft_slo_s` and `tpot_slo_s` None take the fleet's targets. `traceparent` is the W3C trace
    context of the caller's span.
    """

    sampling: SamplingParams | None = None
    priority: Priority = Priority.NORMAL
    request_id: str = ""
    model: str = ""
    tenant: str = ""
    session_id: str = ""
    cache_salt: str = ""
    timeout_s: float = _DEFAULT_TIMEOUT_S
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of the answer, in order and without gaps."""

    text: str
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in seconds; the parts from tokenize to first_step add up to ttft.

    `tpot_s` is None below two tokens.
    """

    tokenize_s: float
    admission_s: float
    route_s: float
    decode_admit_s: float
    prefill_queue_s: float
    prefill_compute_s: float
    kv_transfer_s: float
    first_step_s: float
    ttft_s: float
    tpot_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """How the answer ended, what it took and where it ran; always the last part.

    `trace_id` is empty where traces are not exported.
    """

    request_id: str
    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    timing: Timing
    prefill_worker_id: str
    decode_worker_id: str
    is_remote_prefill: bool
    prefill_reason: str
    kv_bytes: int
    migrations: int
    degradations: tuple[str, ...]
    trace_id: str


class RouterClient:
    """Calls one router; an async context manager that closes its connections.

    Programs with several clients may give them one `pace`.
    """

    def __init__(self, address: str, pace: Pace | None = None) -> None:
        self.address = address
        self._links: LinkPool[router_pb2.RouterCommand, router_pb2.RouterEvent] = LinkPool(
            ROUTER_LINK, pace=pace
        )
        self._decode_links: LinkPool[decode_link_pb2.DecodeCommand, decode_link_pb2.DecodeEvent] = (
            LinkPool(DECODE_LINK, pace=pace)
        )
        self._channel = open_channel(address)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._links.close()
        await self._decode_links.close()
        await self._channel.close()

    async def generate(
        self, prompt: Prompt, options: RequestOptions | None = None
    ) -> AsyncIterator[Chunk | Completion]:
        """Streams the answer: chunks, then one Completion.

        Leaving the loop early cancels the request. Raises a BatonError for any other end.
        """
        options = options or RequestOptions()
        start = router_pb2.RouterCommand(start=_request(prompt, options))
        if start.ByteSize() > _MAX_REQUEST_BYTES:
            # Sent, it would break the link that other requests are on.
            raise InvalidRequestError("the request is longer than a message may be")
        link = self._links.link(self.address)
        call = link.open(start, timeout_s=options.timeout_s, traceparent=options.traceparent)
        is_complete = False
        try:
            async with call:
                async for event in call:
                    part = _part(event)
                    is_complete = isinstance(part, Completion)
                    yield part
        except UnavailableError as error:
            if error.reason != PEER_LOST:
                raise
            raise self._unreachable(error.message) from error
        if not is_complete:
            raise InternalError("the router ended the stream without a completion")

    async def direct(
        self, prompt: Prompt, options: RequestOptions | None = None
    ) -> AsyncIterator[Chunk]:
        """Streams the answer's tokens, without text, from the decode worker itself.

        For clients in the fleet's network: the router checks, admits and places the request but
        does not see its tokens, and does not move it when the worker fails. Leaving the loop early
        cancels the request. Raises a BatonError.
        """
        options = options or RequestOptions()
        asked = router_pb2.RouterCommand(start=_request(prompt, options), wants_ticket=True)
        begun_s = time.monotonic()
        link = self._links.link(self.address)
        async with link.open(
            asked, timeout_s=options.timeout_s, traceparent=options.traceparent
        ) as request:
            ticket = (await anext(request)).ticket
            left_s = options.timeout_s - (time.monotonic() - begun_s)
            start = decode_link_pb2.DecodeCommand(start=ticket.start)
            decode = self._decode_links.link(ticket.decode_address)
            report = router_pb2.DirectReport()
            async with decode.open(
                start, timeout_s=left_s, traceparent=options.traceparent
            ) as events:
                async for event in events:
                    kind = event.WhichOneof("event")
                    if kind == "prefilled":
                        request.send(router_pb2.RouterCommand(report=router_pb2.DirectReport()))
                    elif kind == "finished":
                        report.finish_reason = event.finished.finish_reason
                    elif kind == "tokens":
                        report.total_s = time.monotonic() - begun_s
                        report.ttft_s = report.ttft_s or report.total_s
                        report.output_tokens += len(event.tokens.output_ids)
                        tokens = event.tokens
                        yield Chunk("", tuple(tokens.output_ids), tuple(tokens.logprobs))
            request.send(router_pb2.RouterCommand(report=report))
            async for _ in request:
                pass

    async def models(self) -> tuple[router_pb2.Model, ...]:
        """Returns the models that the fleet serves."""
        try:
            response = await self._stub.ListModels(
                router_pb2.ListModelsRequest(), timeout=_QUERY_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error
        return tuple(response.models)

    async def fleet(self) -> router_pb2.GetFleetResponse:
        """Returns the fleet as this router sees it."""
        try:
            return await self._stub.GetFleet(router_pb2.GetFleetRequest(), timeout=_QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error

    async def requests(self, limit: int = 0) -> router_pb2.ListRequestsResponse:
        """Returns the router's running and recent requests; limit 0 takes the router's own."""
        try:
            return await self._stub.ListRequests(
                router_pb2.ListRequestsRequest(limit=limit), timeout=_QUERY_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error

    async def explain(self, request_id: str) -> router_pb2.ExplainResponse:
        """Returns why a recent request went where it went, and what came of it.

        Raises InvalidRequestError (UNKNOWN_REQUEST) when this router does not know it.
        """
        try:
            return await self._stub.Explain(
                router_pb2.ExplainRequest(request_id=request_id), timeout=_QUERY_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error

    def _translate(self, error: grpc.aio.AioRpcError) -> BatonError:
        # A refusal by the mesh carries details of its own; a bare UNAVAILABLE comes from gRPC.
        if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
            return self._unreachable((error.details() or "no reason given").rpartition(": ")[2])
        return from_rpc_error(error)

    def _unreachable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"no router answers at {self.address} ({why}); start one with `baton up` or give "
            "the address of one that runs",
            reason=ROUTER_UNREACHABLE,
        )


def _request(prompt: Prompt, options: RequestOptions) -> router_pb2.GenerateRequest:
    request = router_pb2.GenerateRequest(
        request_id=options.request_id,
        model=options.model,
        text=prompt.text,
        messages=[
            router_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in prompt.turns
        ],
        priority=types_pb2.Priority.ValueType(options.priority),
        tenant=options.tenant,
        session_id=options.session_id,
        cache_salt=options.cache_salt,
    )
    if prompt.input_ids:
        put_ids(request, router_pb2.GenerateRequest.INPUT_IDS_FIELD_NUMBER, prompt.input_ids)
    if options.sampling is not None:
        request.sampling_params.CopyFrom(sampling_message(options.sampling))
    if options.ttft_slo_s is not None:
        request.slo.ttft.CopyFrom(duration(options.ttft_slo_s))
    if options.tpot_slo_s is not None:
        request.slo.tpot.CopyFrom(duration(options.tpot_slo_s))
    return request


def _part(event: router_pb2.RouterEvent) -> Chunk | Completion:
    if event.HasField("complete"):
        return _completion(event.complete)
    chunk = event.chunk
    return Chunk(chunk.text, tuple(chunk.output_ids), tuple(chunk.logprobs))


def _completion(complete: router_pb2.GenerateComplete) -> Completion:
    usage, placement = complete.usage, complete.placement
    return Completion(
        request_id=complete.request_id,
        model=complete.model,
        finish_reason=FinishReason(complete.finish_reason),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        timing=_timing(complete.timing),
        prefill_worker_id=placement.prefill_worker_id,
        decode_worker_id=placement.decode_worker_id,
        is_remote_prefill=placement.prefill_mode == types_pb2.PREFILL_MODE_REMOTE,
        prefill_reason=placement.prefill_reason,
        kv_bytes=placement.kv_bytes,
        migrations=placement.migrations,
        degradations=tuple(complete.degradations),
        trace_id=complete.trace_id,
    )


def _timing(timing: types_pb2.TimingBreakdown) -> Timing:
    return Timing(
        tokenize_s=timing.tokenize.ToNanoseconds() / 1e9,
        admission_s=timing.admission.ToNanoseconds() / 1e9,
        route_s=timing.route.ToNanoseconds() / 1e9,
        decode_admit_s=timing.decode_admit.ToNanoseconds() / 1e9,
        prefill_queue_s=timing.prefill_queue.ToNanoseconds() / 1e9,
        prefill_compute_s=timing.prefill_compute.ToNanoseconds() / 1e9,
        kv_transfer_s=timing.kv_transfer.ToNanoseconds() / 1e9,
        first_step_s=timing.first_step.ToNanoseconds() / 1e9,
        ttft_s=timing.ttft.ToNanoseconds() / 1e9,
        tpot_s=timing.tpot.ToNanoseconds() / 1e9 if timing.HasField("tpot") else None,
        total_s=timing.total.ToNanoseconds() / 1e9,
    )
