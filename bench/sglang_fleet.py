"""SGLang engines owned by a benchmark, driven directly and as workers behind a real router."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.config import Config, load_config
from baton.engine.base import TokenEvent
from baton.engine.rooms import new_room
from baton.engine.sglang import AGGREGATED, DECODE, PREFILL, SglangEngine, SglangOptions
from baton.kv.external import EngineTransport
from baton.local.child import log_tail
from baton.ports import free_port
from baton.requests import EngineRequest, SamplingParams
from baton.state.connect import connect
from baton.state.embedded import start_embedded
from baton.state.records import WorkerRole, new_incarnation
from baton.telemetry.providers import start_telemetry
from baton.worker.host import WorkerHost, WorkerIdentity
from bench.children import ChildFailed, module, running_child
from bench.drive import Outcome
from bench.mesh import wait_for_workers
from bench.report import note
from services.decode.main import build_service as build_decode
from services.prefill.main import build_service as build_prefill

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Setup:
    """What all engines of a run have in common. `per_engine` are arguments of single ones."""

    model_dir: Path
    block_size: int
    kv_tokens: int
    arguments: Mapping[str, Any]
    per_engine: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def engine(self, name: str, role: str) -> SglangEngine:
        """Returns an engine, not started."""
        return SglangEngine(self.options(name, role))

    def options(self, name: str, role: str) -> SglangOptions:
        """Returns what an engine is started with."""
        own = {"max_total_tokens": self.kv_tokens, **self.arguments}
        return SglangOptions(
            model_dir=str(self.model_dir),
            role=role,
            block_size=self.block_size,
            kv_memory_bytes=0,
            arguments={**own, **self.per_engine.get(name, {})},
        )


@dataclass(frozen=True, slots=True)
class Front:
    """A Redis, an admission service and a router, all real processes."""

    redis_url: str
    address: str
    router_log: Path
    config: Config


@asynccontextmanager
async def running_front(setup: Setup, directory: Path) -> AsyncIterator[Front]:
    """Runs everything but the workers, with logs in `directory`.

    Nothing is rejected early: fleets are compared by what they do with all of the load.
    """
    async with AsyncExitStack() as stack:
        redis = start_embedded(directory / "redis")
        stack.callback(redis.stop)
        environ = {
            # What the packages of a GPU machine came on, too.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "REDIS_URL": redis.url,
            "BATON_MODEL": str(setup.model_dir),
            "BATON_ENGINE__KIND": "sglang",
            "BATON_CACHE__BLOCK_SIZE": str(setup.block_size),
            "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
            "BATON_QOS__REJECT_ON_SLO_VIOLATION": "false",
        }
        port = free_port(_HOST)
        for name, arguments in (("admission", ()), ("router", ("--port", str(port)))):
            command = module(f"services.{name}.main", "--name", f"{name}-0", *arguments)
            child = await stack.enter_async_context(
                running_child(name, command, directory, environ)
            )
        config = load_config(environ=environ)
        yield Front(redis.url, f"{_HOST}:{port}", child.spec.log, config)


@asynccontextmanager
async def running_workers(front: Front, engines: Mapping[str, SglangEngine]) -> AsyncIterator[None]:
    """Serves started engines as workers; leaving stops them. A name's first letter is its role."""
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        # The prefill workers first: a decode worker proves its pairs before it is ready.
        for name, engine in sorted(engines.items(), reverse=True):
            await stack.enter_async_context(_running_worker(front, name, engine, stop))
        try:
            await wait_for_workers(front.address, len(engines), front.router_log)
        except ChildFailed:
            note("\n".join(log_tail(front.router_log, 30)))
            raise
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def _running_worker(
    front: Front, name: str, engine: SglangEngine, stop: asyncio.Event
) -> AsyncIterator[None]:
    role = WorkerRole.PREFILL if name.startswith("p") else WorkerRole.DECODE
    incarnation = new_incarnation()
    host = WorkerHost(
        WorkerIdentity(name, incarnation, role, _HOST, 0),
        front.config,
        engine,
        EngineTransport(incarnation, "sglang/nixl"),
        start_telemetry("bench", name, ""),
        build_prefill if role is WorkerRole.PREFILL else build_decode,
    )
    redis = connect(front.redis_url)
    async with aclosing(redis), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(host.run(redis, stop))
        ready = tasks.create_task(host.is_ready.wait())
        await asyncio.wait((work, ready), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        try:
            if not work.done():
                yield
        finally:
            stop.set()


async def start_all(engines: Sequence[SglangEngine]) -> float:
    """Starts engines at once; returns how many seconds that took."""
    started_s = time.monotonic()
    await asyncio.gather(*(engine.start(EngineTransport("bench", "")) for engine in engines))
    return time.monotonic() - started_s


async def ask_pair(
    prefill: SglangEngine, decode: SglangEngine, prompt: Sequence[int], tokens: int
) -> tuple[Outcome, list[int]]:
    """Drives both legs directly, with nothing of the mesh between."""
    request = _request(prompt, tokens)
    outcome, ids = Outcome(time.monotonic()), list[int]()
    room = new_room(prefill.rendezvous)
    leg = asyncio.ensure_future(prefill.prefill_in_room(request, room))
    async for event in decode.generate_from_room(request, room):
        _count(outcome, ids, event)
    await leg
    outcome.ended_s = time.monotonic()
    return outcome, ids


async def ask_alone(
    engine: SglangEngine, prompt: Sequence[int], tokens: int
) -> tuple[Outcome, list[int]]:
    """Drives one aggregated engine directly."""
    outcome, ids = Outcome(time.monotonic()), list[int]()
    async for event in engine.generate(_request(prompt, tokens)):
        _count(outcome, ids, event)
    outcome.ended_s = time.monotonic()
    return outcome, ids


def _request(prompt: Sequence[int], tokens: int) -> EngineRequest:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return EngineRequest(f"direct-{time.monotonic_ns()}", tuple(prompt), sampling)


def _count(outcome: Outcome, ids: list[int], event: TokenEvent) -> None:
    if event.token_ids:
        outcome.last_s = time.monotonic()
        outcome.first_s = outcome.first_s or outcome.last_s
        outcome.tokens += len(event.token_ids)
        outcome.messages += 1
        ids += event.token_ids


SHAPES: Mapping[str, Mapping[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip
"""The shapes of Llama 3's models of these sizes; their weights are made up by SGLang."""


def write_shape(size: str, tokenizer: Path, directory: Path) -> Path:
    """Makes a model directory without weights and returns it."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 4096,  # the tokenizer's, which comes along
        "max_position_embeddings": 32768,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **SHAPES[size],
    }
    target = directory / f"llama-{size}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((tokenizer / name).read_bytes())
    return target


def gpu_count() -> int:
    """Returns how many GPUs there are, without starting any library on them."""
    return len([name for name in os.listdir("/dev") if name[:6] == "nvidia" and name[6:].isdigit()])


ROLES = {"p": PREFILL, "d": DECODE, "a": AGGREGATED}
"""Names of engines begin with the letter of their role."""
