"""A router and two workers, each worker with a core or a GPU of its own."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from baton.compute import ComputeOptions
from baton.ports import free_port
from baton.state.embedded import start_embedded
from bench.children import module, run_for_json, running_child
from bench.disagg.offer import Offer
from bench.disagg.point import Turn
from bench.disagg.work import Slo
from bench.mesh import wait_for_workers

_HOST = "127.0.0.1"
_ASIDE = "bench.disagg.aside"

_START_TIMEOUT_S = 240.0
"""Loading eight billion weights takes its time."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where workers run: worker i of `cores` or of `gpus`, whichever is not empty."""

    model: Path
    compute: ComputeOptions
    cores: Sequence[int] = ()
    gpus: Sequence[int] = ()
    kv_memory_mib: int = 512
    policy: str = "latency"
    # Until costs are known, a decode worker keeps only the shortest prompts.
    threshold_tokens: int = 32
    prefill_queue_max: int = 16

    def command(self, role: str, index: int, token_budget: int | None) -> list[str]:
        """Returns what starts a worker."""
        compute = ComputeOptions(self.compute.device, self.compute.dtype, token_budget)
        command = module(f"services.{role}.main", "--name", f"{role}-{index}", *compute.arguments())
        if self.cores and sys.platform == "linux":
            return [
                "/usr/bin/env",
                "taskset",
                "-c",
                str(self.cores[index % len(self.cores)]),
                *command,
            ]
        return command

    def environ(self, index: int, redis_url: str, slo: Slo) -> dict[str, str]:
        """Returns a child's settings."""
        settings = {
            "REDIS_URL": redis_url,
            "BATON_MODEL": str(self.model),
            "BATON_CACHE__KV_MEMORY_MIB": str(self.kv_memory_mib),
            "BATON_SPLIT_POLICY__POLICY": self.policy,
            "BATON_SPLIT_POLICY__PROMPT_LENGTH_THRESHOLD": str(self.threshold_tokens),
            "BATON_SPLIT_POLICY__PREFILL_QUEUE_MAX": str(self.prefill_queue_max),
            "BATON_QOS__TTFT_SLO_MS": str(slo.ttft_s * 1e3),
            "BATON_QOS__TPOT_SLO_MS": str(slo.tpot_s * 1e3),
        }
        if self.cores:
            settings["OMP_NUM_THREADS"] = "1"
        if self.gpus:
            settings["CUDA_VISIBLE_DEVICES"] = str(self.gpus[index % len(self.gpus)])
        return settings


@asynccontextmanager
async def running_pair(
    hardware: Hardware, roles: Sequence[str], slo: Slo, token_budget: int | None, folder: Path
) -> AsyncIterator[str]:
    """Runs one worker per role behind a router; yields the router's address. No admission:
    every offered request is let in, in both arms."""
    async with AsyncExitStack() as stack:
        redis = start_embedded(folder / "redis")
        stack.callback(redis.stop)
        for index, role in enumerate(roles):
            budget = token_budget if role == "decode" else None
            command = hardware.command(role, index, budget)
            environ = hardware.environ(index, redis.url, slo)
            name = f"{role}-{index}"
            await stack.enter_async_context(running_child(name, command, folder, environ))
        port = free_port(_HOST)
        command = module(_ASIDE, "services.router.main", "--port", str(port))
        environ = {**hardware.environ(0, redis.url, slo), "CUDA_VISIBLE_DEVICES": ""}
        router = await stack.enter_async_context(running_child("router", command, folder, environ))
        address = f"{_HOST}:{port}"
        await wait_for_workers(address, len(roles), router.spec.log, _START_TIMEOUT_S)
        yield address


async def offered(offer: Offer, folder: Path) -> Turn:
    """Returns what an offer showed; the client has the same low weight as the router."""
    command = module(_ASIDE, "bench.disagg.offer", json.dumps(asdict(offer)))
    return Turn.read(await run_for_json("client", command, folder, {"CUDA_VISIBLE_DEVICES": ""}))
