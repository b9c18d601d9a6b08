"""Workloads in a mesh of real processes on this machine, with the embedded engine."""

import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from baton.cli.demo import long_text
from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.config import knobs
from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.requests import SamplingParams
from bench.knobs.simulated import Figures

OTHERS = 6
"""Other long prompts between the first and the second time of one."""

PROMPT_CHARACTERS = 4000
SHORT_REQUESTS = 150
_ENDPOINT = "mesh.otlp_endpoint"
_SHORT = "The with statement is used to"


def environ_of(settings: Mapping[str, object]) -> dict[str, str]:
    """Returns the environment variables that make these settings."""
    names = {knob.path: knob.variable for knob in knobs()}
    return {
        names[path]: str(value).lower() if isinstance(value, bool) else str(value)
        for path, value in settings.items()
    }


def again(settings: Mapping[str, object], rounds: int) -> list[Figures]:
    """Sends a long prompt, others, and the first one again; a round each with other prompts."""
    return asyncio.run(_again(settings, rounds))


async def _again(settings: Mapping[str, object], rounds: int) -> list[Figures]:
    found: list[Figures] = []
    async with _mesh(settings) as stack, RouterClient(stack.router_address) as client:
        for turn in range(rounds):
            texts = [f"{turn} {i}. {long_text()[:PROMPT_CHARACTERS]}" for i in range(1 + OTHERS)]
            for text in texts:
                await _ask(client, text)
            second = await _ask(client, texts[0])
            found.append(
                {
                    "again_cached_tokens": float(second.cached_tokens),
                    "again_ttft_s": second.timing.ttft_s,
                }
            )
    return found


def spans(settings: Mapping[str, object], rounds: int) -> list[Figures]:
    """Sends short prompts one after the other; what the router's process needs for each."""
    return asyncio.run(_spans(settings, rounds))


async def _spans(settings: Mapping[str, object], rounds: int) -> list[Figures]:
    found: list[Figures] = []
    async with _receiver() as port:
        # The probe names no address: the receiver's is known only now.
        filled = {
            path: f"http://127.0.0.1:{port}" if value and path == _ENDPOINT else value
            for path, value in settings.items()
        }
        async with _mesh(filled) as stack, RouterClient(stack.router_address) as client:
            for _ in range(1 + rounds):
                before_s = _cpu_s(stack.processes["router-0"])
                ttfts_s = [
                    (await _ask(client, _SHORT)).timing.ttft_s for _ in range(SHORT_REQUESTS)
                ]
                spent_s = _cpu_s(stack.processes["router-0"]) - before_s
                found.append(
                    {
                        "router_cpu_s": spent_s / SHORT_REQUESTS,
                        "ttft_p50_s": statistics.median(ttfts_s),
                    }
                )
    return found[1:]


async def _ask(client: RouterClient, text: str) -> Completion:
    sampling = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    async for part in client.generate(Prompt(text=text), RequestOptions(sampling=sampling)):
        if isinstance(part, Completion):
            return part
    raise AssertionError("an answer ends with its completion")


@asynccontextmanager
async def _mesh(settings: Mapping[str, object]) -> AsyncIterator[Stack]:
    environ = {"BATON_MESH__REDIS_URL": "", **environ_of(settings)}
    async with Stack(StackOptions(prefill=1, decode=1, router_port=0, environ=environ)) as stack:
        yield stack


class _Sink(trace_service_pb2_grpc.TraceServiceServicer):
    async def Export(  # noqa: N802 - the name is the protocol's
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def _receiver() -> AsyncIterator[int]:
    """Runs something that takes spans and drops them; yields its port."""
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        _Sink(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def _cpu_s(pid: int) -> float:
    """Returns the CPU seconds that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
