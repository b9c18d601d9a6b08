"""DecodeService: link frames to jobs, and what becomes of them back to frames."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc

from baton.engine.base import TokenEvent
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import DECODE_LINK
from baton.rpc.server import statuses
from baton.v1 import decode_link_pb2, decode_pb2, decode_pb2_grpc, prefill_pb2_grpc, types_pb2
from baton.worker import messages
from baton.worker.kv_source import KvSource
from baton.worker.parts import WorkerParts
from services.decode.job import Candidate, Holder, Job, PromptReady, StagesTold
from services.decode.kinds import Runner, Upkeep
from services.decode.pairing import PrefillWorker
from services.decode.policy import RemoteOutlook
from services.decode.record import JobRecorder

SERVICE = "baton.v1.DecodeService"

Call = ServedCall[decode_link_pb2.DecodeCommand, decode_link_pb2.DecodeEvent]


class DecodeServer(decode_pb2_grpc.DecodeServiceServicer):
    """Serves the links of all routers from one decode worker."""

    names: Sequence[str] = (SERVICE,)

    def __init__(
        self,
        parts: WorkerParts,
        worker: Runner,
        upkeep: Upkeep,
        recorder: JobRecorder,
        source: KvSource | None = None,
    ) -> None:
        self._parts = parts
        self._worker = worker
        self.upkeep = upkeep
        self._recorder = recorder
        self._source = source

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service, and the one by which others pull from this cache."""
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(self, server)
        if self._source is not None:
            prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self._source, server)

    def connected_prefill_workers(self) -> list[str]:
        """Returns the ids of the prefill workers whose pair with this worker is proven."""
        return self.upkeep.connected()

    async def prepare(self) -> None:
        """Makes the pairs that can be made before the worker takes work."""
        await self.upkeep.prepare(self._parts.fleet)

    def fault(self) -> str:
        """Returns why nothing can be generated here, empty while it can."""
        if self._parts.engine.capabilities.prefills_locally:
            return self._parts.transport.fault()
        if not self.connected_prefill_workers():
            return "no pair with a prefill worker is proven, and this engine computes no prompts"
        return self._parts.transport.fault()

    async def run(self) -> None:
        """Keeps pairs with the fleet's prefill workers."""
        await self.upkeep.run(self._parts.fleet)

    async def Link(  # type: ignore[override]  # writes to the context instead of yielding
        self,
        request_iterator: AsyncIterator[decode_link_pb2.DecodeServiceLinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves one router until it hangs up; its generations end with the link."""
        await serve_link(DECODE_LINK, self._serve, context)

    async def GetState(
        self,
        request: decode_pb2.DecodeServiceGetStateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> decode_pb2.DecodeServiceGetStateResponse:
        """Shows load, KV accounting and proven pairs."""
        async with statuses(context):
            worker = self._parts.describe()
        return decode_pb2.DecodeServiceGetStateResponse(
            worker=worker, connected_prefill_workers=self.connected_prefill_workers()
        )

    async def _serve(self, call: Call) -> None:
        with self._parts.gate.pass_through():
            job = _to_job(call)
            with self._recorder.recording(job) as record:
                # An async generator: closing it frees the job's KV.
                async with aclosing(self._worker.run(job)) as updates:
                    async for update in updates:
                        if isinstance(update, PromptReady):
                            record.prompt_ready(update)
                            await call.send(_prefilled(update))
                        elif isinstance(update, StagesTold):
                            await call.send(_stages(update))
                        else:
                            record.tokens(update)
                            await _send_tokens(call, update)


async def _send_tokens(call: Call, event: TokenEvent) -> None:
    waiting = call.waiting()
    if waiting is not None and waiting.HasField("tokens"):
        waiting.tokens.output_ids.extend(event.token_ids)
        waiting.tokens.logprobs.extend(event.logprobs)
    elif event.token_ids:
        tokens = decode_link_pb2.DecodeTokens(output_ids=event.token_ids, logprobs=event.logprobs)
        await call.send(decode_link_pb2.DecodeEvent(tokens=tokens))
    if event.finish_reason is not None:
        reason = types_pb2.FinishReason.ValueType(event.finish_reason)
        finished = decode_link_pb2.DecodeFinished(finish_reason=reason)
        await call.send(decode_link_pb2.DecodeEvent(finished=finished))


def _to_job(call: Call) -> Job:
    start = call.start.start
    return Job(
        request=messages.engine_request(start),
        candidates=tuple(
            Candidate(
                PrefillWorker(candidate.worker_id, candidate.incarnation, candidate.address),
                candidate.queue_length,
                _remote_outlook(candidate),
            )
            for candidate in start.prefill_candidates
        ),
        holders=tuple(
            Holder(
                PrefillWorker(holder.worker_id, holder.incarnation, holder.address),
                holder.cached_tokens,
            )
            for holder in start.prefix_holders
        ),
        deadline_s=call.deadline_s,
        traceparent=call.traceparent,
        prefers_local=start.prefers_local_prefill,
    )


def _remote_outlook(candidate: decode_link_pb2.PrefillCandidate) -> RemoteOutlook | None:
    if not (candidate.HasField("expected_wait_s") and candidate.HasField("expected_prefill_s")):
        return None
    return RemoteOutlook(
        candidate.worker_id,
        candidate.expected_wait_s,
        candidate.expected_prefill_s,
        candidate.cached_tokens,
    )


def _stages(told: StagesTold) -> decode_link_pb2.DecodeEvent:
    return decode_link_pb2.DecodeEvent(
        stages=decode_link_pb2.DecodeStages(
            prefill_queue_s=told.prefill_queue_s,
            prefill_compute_s=told.prefill_compute_s,
            kv_transfer_s=told.kv_transfer_s,
        )
    )


def _prefilled(ready: PromptReady) -> decode_link_pb2.DecodeEvent:
    mode = types_pb2.PREFILL_MODE_REMOTE if ready.is_remote else types_pb2.PREFILL_MODE_LOCAL
    predicted = ready.decision.prediction
    return decode_link_pb2.DecodeEvent(
        prefilled=decode_link_pb2.DecodePrefilled(
            mode=mode,
            reason=ready.reason,
            prefill_worker_id=ready.prefill_worker_id,
            cached_tokens=ready.cached_tokens,
            local_cached_tokens=ready.local_cached_tokens,
            receipt=messages.receipt_message(ready.receipt) if ready.receipt else None,
            decode_admit_s=ready.decode_admit_s,
            prefill_queue_s=ready.prefill_queue_s,
            prefill_compute_s=ready.prefill_compute_s,
            kv_transfer_s=ready.kv_transfer_s,
            failed_attempts=ready.failed_attempts,
            predicted_local_ttft_s=predicted.local_ttft_s if predicted else None,
            predicted_remote_ttft_s=predicted.remote_ttft_s if predicted else None,
            predicted_interference_s=predicted.interference_s if predicted else None,
            pulled_tokens=ready.pulled.tokens if ready.pulled else 0,
            pulled_from=ready.pulled.worker_id if ready.pulled else "",
        )
    )
