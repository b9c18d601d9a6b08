"""Looks into every process from outside and counts what nobody should hold any more."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from baton.local.roles import Role
from baton.state import keys
from baton.v1 import router_pb2, router_pb2_grpc
from tests.chaos.fleet import Fleet
from tests.support.mesh import admission_state, worker_stats


@dataclass(frozen=True, slots=True)
class Leaks:
    """What is still held while no request runs."""

    blocks: int = 0
    permits: int = 0
    credits: int = 0
    requests: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)

    def __bool__(self) -> bool:
        return bool(self.blocks or self.permits or self.credits or self.requests)


@dataclass(frozen=True, slots=True)
class CpuTime:
    """What one process's threads got of the machine so far, and how long they waited for it."""

    run_s: float = 0.0
    wait_s: float = 0.0


def cpu_times(fleet: Fleet) -> dict[int, CpuTime]:
    """Returns the times of each process by its id; Linux keeps them."""
    times = {}
    for member in fleet.members.values():
        threads = Path(f"/proc/{member.pid}/task")
        run_ns = wait_ns = 0
        for file in threads.glob("*/schedstat") if member.pid else ():
            with suppress(OSError):  # the thread may have ended
                run, wait, _ = file.read_text().split()
                run_ns, wait_ns = run_ns + int(run), wait_ns + int(wait)
        times[member.pid] = CpuTime(run_ns / 1e9, wait_ns / 1e9)
    return times


def starved_share(before: dict[int, CpuTime], after: dict[int, CpuTime]) -> float:
    """Returns which part of the time in which processes wanted a core they waited for one.

    Only lives that saw both moments count. On an idle machine it is near zero.
    """
    lived = before.keys() & after.keys()
    run_s = sum(after[pid].run_s - before[pid].run_s for pid in lived)
    wait_s = sum(after[pid].wait_s - before[pid].wait_s for pid in lived)
    return wait_s / (run_s + wait_s) if run_s + wait_s > 0 else 0.0


async def look(fleet: Fleet) -> Leaks:
    """Counts what is held now. Raises AssertionError where a worker's blocks do not add up."""
    blocks = 0
    for role in (Role.PREFILL, Role.DECODE):
        for member in fleet.of(role):
            stats = await worker_stats(member.address, role.value)
            total = stats.kv_blocks_free + stats.kv_blocks_cached + stats.kv_blocks_owned
            assert total == stats.kv_blocks_total, (member.name, stats)
            blocks += stats.kv_blocks_owned + stats.kv_leases
    permits = 0
    for member in fleet.of(Role.ADMISSION):
        state = await admission_state(member.address)
        permits += state.prefill_permits + state.decode_permits + state.queued_requests
    requests = 0
    for member in fleet.of(Role.ROUTER):
        async with grpc.aio.insecure_channel(member.address) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            answer = await stub.GetFleet(router_pb2.GetFleetRequest(), timeout=5)
            requests += answer.active_requests
    return Leaks(blocks, permits, await _credits(fleet), requests)


async def _credits(fleet: Fleet) -> int:
    """Returns the dispatches in the last report of each router; reports replace each other."""
    last: dict[str, int] = {}
    entries: Any = await fleet.redis.xrange(keys.credits())
    for _, fields in entries:
        for data in fields.values():
            report = json.loads(data)
            last[report["router"]] = len(report["dispatches"])
    return sum(last.values())
