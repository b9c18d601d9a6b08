"""Rounds of random faults between real processes: nothing may leak and no token may be wrong.

    python -m tests.support.fault_rounds --rounds 1000 --seed 1 [--path nixl-ucx] [--record]

One decode worker here, two prefill workers in processes of their own. Each round sends a few
prompts at once, each with a fault of its own, and on top may cancel one, cut the line, or kill and
replace a worker on the same address.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from baton.config import load_config
from baton.errors import BatonError
from baton.rpc.link import LinkPool
from baton.rpc.links import DECODE_LINK
from baton.state.connect import connect
from baton.state.records import WorkerRole, new_incarnation
from baton.telemetry.providers import start_telemetry
from baton.v1 import decode_link_pb2, types_pb2
from baton.worker.host import WorkerHost, WorkerIdentity
from baton.worker.parts import RoleService, WorkerParts
from bench import report
from services.decode import pairing
from services.decode.leases import LeaseBook
from services.decode.main import build_service
from tests.support import faulty_worker
from tests.support.cable import Cable
from tests.support.fake_engine import FakeEngine, generated
from tests.support.redis import running_redis
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, take

QUARANTINE_S = 0.5
MAX_AT_ONCE = 4
ANSWER_TOKENS = 4
REQUEST_TIMEOUT_S = 15.0
START_TIMEOUT_S = PAIRING_TIMEOUT_S = 60.0
BACKOFF_S = 0.02
WARM_UP_ROUNDS = 20
"""Rounds before memory is first looked at: pools, channels and caches fill up meanwhile."""


class PrefillProcess:
    """A prefill worker that may die and is replaced at the same address."""

    def __init__(self, name: str, redis_url: str, path: str) -> None:
        self.name = name
        self.incarnation = ""
        self.starts = 0
        self.cable = Cable()
        self._arguments = redis_url, path
        self._process: Any = None

    async def start(self) -> None:
        """Starts the next life, once the last one is over."""
        if not self.cable.address:
            await self.cable.lay()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.support.faulty_worker"])
        ours, theirs = context.Pipe()
        redis_url, path = self._arguments
        arguments = (theirs, self.name, redis_url, self.cable.address, path)
        self._process = context.Process(target=faulty_worker.run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        listening, self.incarnation = await asyncio.to_thread(_receive, ours)
        ours.close()
        self.cable.plug_in(listening)
        self.starts += 1

    @property
    def is_alive(self) -> bool:
        return bool(self._process is not None and self._process.is_alive())

    async def kill(self) -> None:
        """Kills it as the kernel would; its lines break with it."""
        if self.is_alive:
            os.kill(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.join)
        await self.cable.drop()

    async def revive(self) -> None:
        """Starts it again if it died."""
        if not self.is_alive:
            await self.kill()
            await self.start()

    def candidate(self, incarnation: str = "") -> decode_link_pb2.PrefillCandidate:
        """Returns the worker as a router offers it."""
        return decode_link_pb2.PrefillCandidate(
            worker_id=self.name,
            incarnation=incarnation or self.incarnation,
            address=self.cable.address,
        )


@dataclass
class Outcome:
    """What the rounds saw."""

    rounds: int = 0
    requests: int = 0
    cancelled: int = 0
    remote: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    wrong_answers: int = 0
    leaked_blocks: int = 0
    first_rss_mib: float = 0.0
    last_rss_mib: float = 0.0
    first_threads: int = 0
    last_threads: int = 0
    first_files: int = 0
    last_files: int = 0
    seconds: float = 0.0


class Rounds:
    """The decode worker under test and what is done to it."""

    def __init__(self, redis_url: str, seed: int, path: str, replaced_share: float) -> None:
        self._replaced_share = replaced_share
        self.outcome = Outcome()
        self._random = random.Random(seed)
        self._redis_url = redis_url
        self._path = path
        self._engine = FakeEngine(faulty_worker.BLOCKS)
        self._workers = [PrefillProcess(f"p{index}", redis_url, path) for index in range(2)]
        self._links = LinkPool(DECODE_LINK)
        self._stop = asyncio.Event()
        self._address = ""
        self._host: asyncio.Task[None] | None = None
        self._transport = faulty_worker.make_transport(new_incarnation(), path)
        self._service: Any = None

    async def start(self) -> None:
        """Starts all workers."""
        identity = WorkerIdentity("d0", self._transport.agent, WorkerRole.DECODE, "127.0.0.1", 0)

        def build(parts: WorkerParts) -> RoleService:
            self._service = build_service(parts, QUARANTINE_S)
            return self._service

        config = load_config(environ={"REDIS_URL": self._redis_url})
        telemetry = start_telemetry("test", "d0", "")
        host = WorkerHost(identity, config, self._engine, self._transport, telemetry, build)
        self._host = asyncio.create_task(self._run(host))
        async with asyncio.timeout(START_TIMEOUT_S):
            await host.is_ready.wait()
        self._address = host.listening
        await asyncio.gather(*(worker.start() for worker in self._workers))

    async def stop(self) -> None:
        """Ends all workers."""
        await self._links.close()
        for worker in self._workers:
            await worker.kill()
            await worker.cable.cut()
        self._stop.set()
        assert self._host is not None
        await self._host

    async def run(self, rounds: int) -> Outcome:
        """Runs the rounds; raises AssertionError at once when something is wrong."""
        began_s = time.monotonic()
        for number in range(rounds):
            if number == min(WARM_UP_ROUNDS, rounds - 1):
                await self._settle()
                self._look(is_first=True)
            await self._round(number)
            self._engine.pool.audit()
            self.outcome.rounds += 1
        await self._settle()
        self._look(is_first=False)
        self.outcome.restarts = sum(worker.starts - 1 for worker in self._workers)
        self.outcome.seconds = time.monotonic() - began_s
        return self.outcome

    async def _round(self, number: int) -> None:
        rng = self._random
        # Rounds come faster than a quarantined pair is tried again; local prefill tests nothing.
        await eventually(self._is_paired, timeout_s=PAIRING_TIMEOUT_S)
        replaced = rng.choice(self._workers) if rng.random() < self._replaced_share else None
        former = [worker.incarnation for worker in self._workers]
        if replaced is not None:
            # The router has not heard of it yet: it offers the life that is over.
            await replaced.kill()
            await replaced.start()
            self.outcome.faults["replaced"] += 1
        asks = [
            asyncio.create_task(self._ask(f"{number}-{index}", former))
            for index in range(rng.randint(1, MAX_AT_ONCE))
        ]
        if rng.random() < 0.1:
            await asyncio.sleep(rng.uniform(0, 0.01))
            await rng.choice(self._workers).cable.drop()
            self.outcome.faults["line cut"] += 1
        await asyncio.gather(*asks)

    async def _is_paired(self) -> bool:
        """Revives who died, which may show only a moment after its lines broke."""
        await asyncio.gather(*(worker.revive() for worker in self._workers))
        names = [worker.name for worker in self._workers]
        return bool(self._service.connected_prefill_workers() == names)

    async def _ask(self, name: str, incarnations: Sequence[str]) -> None:
        rng = self._random
        fault = rng.choice(faulty_worker.FAULTS) if rng.random() < 0.4 else "none"
        prompt = _prompt(rng)
        order = rng.sample(range(len(self._workers)), len(self._workers))
        candidates = [self._workers[index].candidate(incarnations[index]) for index in order]
        # A worker that never finishes holds its engine until the request is cancelled.
        is_cancelled = rng.random() < 0.15 or fault == "never-finishes"
        patience_s = rng.uniform(0, 0.05) if is_cancelled else None
        self.outcome.requests += 1
        self.outcome.faults[fault] += 1
        call = self._open(f"{name}:{fault}", prompt, candidates)
        await self._judge(call, prompt, patience_s)

    def _open(self, name: str, prompt: Sequence[int], candidates: Sequence[Any]) -> Any:
        sampling = types_pb2.SamplingParams(
            max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True
        )
        start = decode_link_pb2.DecodeStart(
            request_id=name,
            input_ids=prompt,
            sampling_params=sampling,
            priority=types_pb2.PRIORITY_NORMAL,
            prefill_candidates=candidates,
        )
        return self._links.link(self._address).open(
            decode_link_pb2.DecodeCommand(start=start), timeout_s=REQUEST_TIMEOUT_S
        )

    async def _judge(self, call: Any, prompt: Sequence[int], patience_s: float | None) -> None:
        answer = Answer()
        try:
            async with asyncio.timeout(patience_s):
                async for event in call:
                    take(answer, event)
        except TimeoutError:
            await call.cancel()
            self.outcome.cancelled += 1
        except BatonError as error:
            self.outcome.failed[error.reason] += 1
        right = generated(prompt, ANSWER_TOKENS)
        if answer.tokens != right[: len(answer.tokens)]:
            self.outcome.wrong_answers += 1
        assert answer.tokens == right[: len(answer.tokens)], "a wrong token"
        if answer.prefilled is not None:
            self.outcome.remote += answer.prefilled.mode == types_pb2.PREFILL_MODE_REMOTE
            for attempt in answer.prefilled.failed_attempts:
                self.outcome.attempts[attempt.rpartition(": ")[2]] += 1

    async def _settle(self) -> None:
        """Waits until nothing is held for anybody, which quarantine may delay."""
        await eventually(self._is_clean, timeout_s=20.0)
        self._engine.pool.audit()

    def _is_clean(self) -> bool:
        stats = self._engine.stats()
        self.outcome.leaked_blocks = stats.kv_blocks_owned
        is_expecting = self._transport.incoming.is_expecting
        assert not self._reservations().overdue(), "a state outlived its deadline"
        is_held = bool(stats.kv_blocks_owned or stats.kv_leases or len(self._reservations()))
        return not (is_held or is_expecting)

    def _reservations(self) -> LeaseBook:
        book: LeaseBook = self._service.upkeep.leases
        return book

    def _look(self, *, is_first: bool) -> None:
        me = psutil.Process()
        rss_mib = me.memory_info().rss / 2**20
        if is_first:
            self.outcome.first_rss_mib = rss_mib
            self.outcome.first_threads, self.outcome.first_files = me.num_threads(), me.num_fds()
        self.outcome.last_rss_mib = rss_mib
        self.outcome.last_threads, self.outcome.last_files = me.num_threads(), me.num_fds()

    async def _run(self, host: WorkerHost) -> None:
        redis = connect(self._redis_url)
        try:
            await host.run(redis, self._stop)
        finally:
            await redis.aclose()


def _prompt(rng: random.Random) -> list[int]:
    """Returns a prompt that mostly goes remote and often shares its start with others."""
    shared = [rng.randrange(3)] * rng.choice((0, 40, 200))
    return shared + [rng.randrange(5, 900) for _ in range(rng.randint(260, 420))]


def _receive(connection: Connection) -> Any:
    if not connection.poll(START_TIMEOUT_S):
        raise TimeoutError("a prefill worker does not start")
    return connection.recv()


async def run_rounds(
    rounds: int, seed: int, path: str = faulty_worker.SHARED, replaced_share: float = 0.05
) -> Outcome:
    """Runs everything and returns what was seen; `replaced_share` of rounds restart a worker."""
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as redis:
        running = Rounds(redis.url, seed, path, replaced_share)
        pairing.BACKOFF_S, usual_s = BACKOFF_S, pairing.BACKOFF_S
        await running.start()
        try:
            return await running.run(rounds)
        finally:
            await running.stop()
            pairing.BACKOFF_S = usual_s


def main() -> None:
    """Reads the command line, runs, and prints one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--path", default=faulty_worker.SHARED)
    parser.add_argument("--replaced", type=float, default=0.05, help="Share of rounds, 0 to 1.")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    outcome = asyncio.run(run_rounds(options.rounds, options.seed, options.path, options.replaced))
    print(outcome)
    figures = {
        "rounds": outcome.rounds,
        "requests": outcome.requests,
        "restarts": outcome.restarts,
        "wrong_answers": outcome.wrong_answers,
        "leaked_blocks": outcome.leaked_blocks,
        "rss_growth_mib": outcome.last_rss_mib - outcome.first_rss_mib,
        "thread_growth": outcome.last_threads - outcome.first_threads,
        "file_growth": outcome.last_files - outcome.first_files,
        "seconds": outcome.seconds,
    }
    details = {
        "seed": options.seed,
        "path": options.path,
        "replaced_share": options.replaced,
        "cancelled": outcome.cancelled,
        "remote": outcome.remote,
        "faults": dict(outcome.faults),
        "failed_attempts": dict(outcome.attempts),
        "failed_requests": dict(outcome.failed),
        "rss_mib": [outcome.first_rss_mib, outcome.last_rss_mib],
        "threads": [outcome.first_threads, outcome.last_threads],
        "files": [outcome.first_files, outcome.last_files],
    }
    name = "kv-faults" if options.replaced < 0.5 else "kv-restarts"
    report.emit(name, figures, details, options.record)


if __name__ == "__main__":
    main()
