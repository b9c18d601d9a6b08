"""Rounds of faults under load."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc

from baton.local.roles import Role
from baton.state.connect import REDIS_ERRORS
from bench.report import commit
from tests.chaos.faults import Fault, any_fault
from tests.chaos.fleet import Fleet
from tests.chaos.hosts import Hosts
from tests.chaos.observer import Leaks, cpu_times, look, starved_share
from tests.chaos.report import Round
from tests.chaos.traffic import Question, Tally, Traffic

CLIENTS = 4
RECOVERY_LIMIT_S = 30.0
QUIET_LIMIT_S = 20.0
"""Blocks whose writer died are kept out of use for ten seconds before they are free again."""

_PROBE_TIMEOUT_S = 3.0
_POLL_S = 0.05
_BOTH_SHARE = 0.35

ENVIRON = {
    "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    "BATON_SPLIT_POLICY__POLICY": "weighted",
    "BATON_SPLIT_POLICY__PROMPT_LENGTH_THRESHOLD": "100",
    "BATON_CACHE__KV_MEMORY_MIB": "64",
}
"""The threshold rule keeps the pairs busy: what is predicted would compute most prompts locally."""


async def run_campaign(
    numbers: Sequence[int],
    seed: int,
    questions: list[Question],
    run_dir: Path,
    *,
    routers: int = 1,
    on_hosts: bool = False,
) -> AsyncIterator[Round]:
    """Breaks one fleet once for each number; the plan follows from `seed` and the number alone.

    There are as many admission services as routers. With `on_hosts` each worker has a network
    namespace of its own and KV moves by TCP.
    """
    hosts = Hosts(run_dir) if on_hosts else None
    counts = {Role.ADMISSION: routers, Role.ROUTER: routers, Role.PREFILL: 2, Role.DECODE: 2}
    code = commit()
    async with Fleet(run_dir, ENVIRON, counts, hosts, restarts_often=True) as fleet:
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")
            yield await _round(fleet, rng, questions, (seed, number, code))


async def _round(
    fleet: Fleet, rng: random.Random, questions: list[Question], plan: tuple[int, int, str]
) -> Round:
    began_s, cpu = time.monotonic(), cpu_times(fleet)
    faults = [any_fault(fleet, rng)]
    if rng.random() < _BOTH_SHARE:
        faults.append(any_fault(fleet, rng))
    tally = Tally()
    addresses = [router.address for router in fleet.of(Role.ROUTER)]
    traffic = Traffic(addresses, questions, rng, tally)
    traffic.start(CLIENTS)
    await asyncio.sleep(rng.uniform(0.2, 0.8))
    await asyncio.gather(*(_suffer(fault) for fault in faults))
    recovery = await _recover(fleet, traffic)
    await traffic.stop()
    leaks = await _settle(fleet)
    return Round(
        *plan,
        tuple(fault.name for fault in faults),
        tuple(victim for fault in faults for victim in fault.victims),
        {ending.value: count for ending, count in tally.endings.items()},
        dict(tally.errors),
        round(recovery.seconds, 3),
        round(time.monotonic() - began_s, 1),
        leaks.counts if leaks else {},
        (*recovery.broken, *_held_lines(leaks), *tally.details),
        recovery.waited_for,
        len(addresses),
        round(starved_share(cpu, cpu_times(fleet)), 3),
    )


async def _suffer(fault: Fault) -> None:
    await fault.inject()
    await asyncio.sleep(fault.lasts_s)
    await fault.heal()


class Recovery(NamedTuple):
    """How long after the last fault's end the mesh was whole, and what it lacked last.

    `broken` says that it never was.
    """

    seconds: float
    waited_for: str
    broken: tuple[str, ...] = ()


async def _recover(fleet: Fleet, traffic: Traffic) -> Recovery:
    """Waits until the mesh is whole and answers rightly."""
    began_s = time.monotonic()
    lacked = ""
    while time.monotonic() - began_s < RECOVERY_LIMIT_S:
        missing = await fleet.missing()
        lacked = missing or lacked
        if not missing:
            if await traffic.is_answered(_PROBE_TIMEOUT_S):
                return Recovery(time.monotonic() - began_s, lacked)
            lacked = "a router does not answer"
        await asyncio.sleep(_POLL_S)
    broken = f"not whole after {RECOVERY_LIMIT_S:g} s: {lacked}"
    return Recovery(RECOVERY_LIMIT_S, lacked, (broken,))


async def _settle(fleet: Fleet) -> Leaks | None:
    """Waits until nobody holds anything; what is held after the limit has leaked."""
    deadline_s = time.monotonic() + QUIET_LIMIT_S
    while (held := await _held(fleet)) != Leaks() and time.monotonic() < deadline_s:
        await asyncio.sleep(_POLL_S)
    return held


def _held_lines(leaks: Leaks | None) -> tuple[str, ...]:
    if leaks is None:
        return ("a process does not answer",)
    return (f"still held: {leaks}",) if leaks else ()


async def _held(fleet: Fleet) -> Leaks | None:
    """Returns what is held; None while a process does not answer."""
    try:
        return await look(fleet)
    except (grpc.aio.AioRpcError, *REDIS_ERRORS):
        return None
