"""One prefill, one decode and one aggregated worker on real SGLang engines, for all tests here.

Only where SGLang is installed: `make setup-sglang-cpu`, then `make test-sglang`. An engine takes a
minute to start on two busy cores, so tests share the workers and leave them as they found them.
"""

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from baton.rpc.link import LinkPool
from baton.rpc.links import DECODE_LINK
from baton.state import keys
from baton.state.records import WorkerRecord, decode_record
from baton.v1 import decode_link_pb2, types_pb2
from tests.support.mesh import is_clean, worker_stats
from tests.support.otlp import OtlpReceiver
from tests.support.redis import running_redis
from tests.support.reference import Reference
from tests.support.waiting import eventually

CONFIG = Path("tools/sglang_cpu/baton.yaml")
START_TIMEOUT_S = 420.0

collect_ignore_glob = [] if importlib.util.find_spec("sglang") else ["test_*.py"]


@dataclass
class Worker:
    """A worker process and what it registered as."""

    name: str
    role: str
    process: asyncio.subprocess.Process
    record: WorkerRecord

    @property
    def address(self) -> str:
        return self.record.address

    async def stats(self) -> Any:
        return await worker_stats(self.address, self.role)

    async def is_clean(self) -> bool:
        stats = await self.stats()
        return is_clean(stats) and not stats.queued_requests

    @property
    def family(self) -> list[int]:
        """Returns the processes that the worker started and those that they started."""
        found, todo = list[int](), [self.process.pid]
        while todo:
            children = _children(todo.pop())
            found += children
            todo += children
        return found

    def engine_pid(self) -> int:
        """Returns the process that made the engine: the worker's only child."""
        return _children(self.process.pid)[0]


class Fleet:
    """Starts workers and asks decode workers as a router would."""

    def __init__(self, redis_url: str, redis: Redis, logs: Path, otlp: OtlpReceiver) -> None:
        self.redis_url = redis_url
        self.otlp = otlp
        self._logs = logs
        self.redis = redis
        self.links = LinkPool(DECODE_LINK)
        self._numbers = iter(range(1 << 30))
        self.workers: dict[str, Worker] = {}
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the fleet's processes."""
        return {
            **os.environ,
            "REDIS_URL": self.redis_url,
            "BATON_MESH__OTLP_ENDPOINT": self.otlp.endpoint,
            "OMP_NUM_THREADS": "1",
            "SGLANG_USE_CPU_ENGINE": "1",
        }

    async def start(self, name: str, role: str, *arguments: str) -> Worker:
        with (self._logs / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", f"services.{role}.main", "--config", str(CONFIG), "--name", name),
                *("--port", "0", *arguments),
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        record = await self._joined(name, process)
        worker = self.workers[name] = Worker(name, role, process, record)
        return worker

    async def close(self) -> None:
        await self.links.close()
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            await asyncio.wait_for(process.wait(), 60)

    def candidate(self, name: str, **changed: Any) -> decode_link_pb2.PrefillCandidate:
        record = self.workers[name].record
        values = {
            "worker_id": record.worker_id,
            "incarnation": record.incarnation,
            "address": record.address,
        }
        return decode_link_pb2.PrefillCandidate(**{**values, **changed})

    def ask(
        self,
        prompt: Sequence[int],
        max_tokens: int = 8,
        decode: str = "decode-0",
        candidates: Sequence[decode_link_pb2.PrefillCandidate] | None = None,
        timeout_s: float = 90.0,
        **sampling: Any,
    ) -> Any:
        """Opens a request on a decode worker."""
        if candidates is None:
            candidates = [self.candidate("prefill-0")]
        parameters = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
        start = decode_link_pb2.DecodeStart(
            request_id=f"request-{next(self._numbers)}",
            input_ids=prompt,
            sampling_params=types_pb2.SamplingParams(**{**parameters, **sampling}),
            priority=types_pb2.PRIORITY_NORMAL,
            prefill_candidates=candidates,
        )
        return self.links.link(self.workers[decode].address).open(
            decode_link_pb2.DecodeCommand(start=start), timeout_s=timeout_s
        )

    async def settle(self, timeout_s: float = 45.0) -> None:
        """Returns once no worker holds anything for anybody."""

        async def is_settled() -> bool:
            return all([await worker.is_clean() for worker in self.workers.values()])

        await eventually(is_settled, timeout_s=timeout_s)

    async def _joined(self, name: str, process: asyncio.subprocess.Process) -> WorkerRecord:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                if process.returncode is not None:
                    log = (self._logs / f"{name}.log").read_text(errors="replace")
                    raise AssertionError(f"{name} ended with {process.returncode}: {log[-3000:]}")
                data = await self.redis.get(keys.record(name))
                if data is not None:
                    return decode_record(data)
                await asyncio.sleep(0.1)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Returns a prompt that no other seed's shares a block with."""
    return [5 + (7 * n + 13 * seed) % 3900 for n in range(length)]


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    logs = Path(os.environ.get("SGLANG_TEST_LOGS") or tmp_path_factory.mktemp("logs"))
    with running_redis(tmp_path_factory.mktemp("redis")) as server, OtlpReceiver() as otlp:
        async with Redis.from_url(server.url) as redis:
            fleet = Fleet(server.url, redis, logs, otlp)
            try:
                await asyncio.gather(
                    fleet.start("prefill-0", "prefill"),
                    fleet.start("decode-0", "decode"),
                    fleet.start("alone-0", "decode", "--aggregated"),
                )
                yield fleet
            finally:
                await fleet.close()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
