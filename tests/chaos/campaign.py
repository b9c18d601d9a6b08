"""Rounds of faults under load, and the report of what they did."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from baton.local.roles import Role
from baton.state.connect import REDIS_ERRORS
from tests.chaos.faults import Fault, any_fault
from tests.chaos.fleet import Fleet
from tests.chaos.hosts import Hosts
from tests.chaos.observer import Leaks, look
from tests.chaos.traffic import Ending, Question, Tally, Traffic

CLIENTS = 4
RECOVERY_LIMIT_S = 30.0
QUIET_LIMIT_S = 20.0
"""Blocks whose writer died are kept out of use for ten seconds before they are free again."""

_PROBE_TIMEOUT_S = 3.0
_POLL_S = 0.05
_BOTH_SHARE = 0.35

COUNTS = {Role.ADMISSION: 1, Role.ROUTER: 1, Role.PREFILL: 2, Role.DECODE: 2}

ENVIRON = {
    "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    "BATON_SPLIT_POLICY__POLICY": "weighted",
    "BATON_SPLIT_POLICY__PROMPT_LENGTH_THRESHOLD": "100",
    "BATON_CACHE__KV_MEMORY_MIB": "64",
}
"""The threshold rule keeps the pairs busy: what is predicted would compute most prompts locally."""


@dataclass(slots=True)
class Report:
    """What a campaign saw. `recoveries_s` has one entry per round."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    recoveries_s: list[float] = field(default_factory=list)
    leaks: list[Leaks] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, float | int | None]:
        """Returns the figures under their published names."""
        ordered = sorted(self.recoveries_s)
        p99_s = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else None
        return {
            "rounds": self.rounds,
            "faults": sum(self.faults.values()),
            "requests": self.tally.requests,
            "wrong_tokens": self.tally.endings[Ending.WRONG],
            "lost_requests": self.tally.endings[Ending.LOST],
            "leaked_blocks": sum(it.blocks for it in self.leaks),
            "leaked_permits": sum(it.permits for it in self.leaks),
            "leaked_credits": sum(it.credits for it in self.leaks),
            "recovery_p99_s": None if p99_s is None else round(p99_s, 3),
        }

    @property
    def is_clean(self) -> bool:
        """Tells whether every invariant held."""
        return not (self.problems or self.tally.details or any(self.leaks))


async def run_campaign(
    rounds: int,
    seed: int,
    questions: list[Question],
    run_dir: Path,
    tell: Callable[[str], None],
    *,
    on_hosts: bool = False,
) -> Report:
    """Breaks one fleet `rounds` times. The plan of round n follows from `seed` and n alone.

    With `on_hosts` each worker has a network namespace of its own and KV moves by TCP.
    """
    report = Report()
    hosts = Hosts(run_dir) if on_hosts else None
    async with Fleet(run_dir, ENVIRON, COUNTS, hosts) as fleet:
        for number in range(rounds):
            rng = random.Random(f"{seed}/{number}")
            line = await _round(fleet, rng, questions, report)
            report.rounds += 1
            tell(f"{number + 1:4d}/{rounds} {line}")
    return report


async def _round(
    fleet: Fleet, rng: random.Random, questions: list[Question], report: Report
) -> str:
    faults = [any_fault(fleet, rng)]
    if rng.random() < _BOTH_SHARE:
        faults.append(any_fault(fleet, rng))
    before = report.tally.requests
    addresses = [router.address for router in fleet.of(Role.ROUTER)]
    traffic = Traffic(addresses, questions, rng, report.tally)
    traffic.start(CLIENTS)
    await asyncio.sleep(rng.uniform(0.2, 0.8))
    await asyncio.gather(*(_suffer(fault) for fault in faults))
    recovery_s = await _recovery_s(fleet, traffic, report)
    await traffic.stop()
    await _settle(fleet, report)
    names = ", ".join(f"{fault.name} of {fault.victims[0]}" for fault in faults)
    report.faults.update(fault.name for fault in faults)
    asked = report.tally.requests - before
    return f"{names}: {asked} requests, whole after {recovery_s:.2f} s"


async def _suffer(fault: Fault) -> None:
    await fault.inject()
    await asyncio.sleep(fault.lasts_s)
    await fault.heal()


async def _recovery_s(fleet: Fleet, traffic: Traffic, report: Report) -> float:
    """Returns how long after the last fault ended the mesh was whole and answered rightly."""
    began_s = time.monotonic()
    missing = ""
    while time.monotonic() - began_s < RECOVERY_LIMIT_S:
        missing = await fleet.missing()
        if not missing:
            if await traffic.is_answered(_PROBE_TIMEOUT_S):
                report.recoveries_s.append(time.monotonic() - began_s)
                return report.recoveries_s[-1]
            missing = "a router does not answer"
        await asyncio.sleep(_POLL_S)
    report.problems.append(
        f"round {report.rounds + 1}: not whole after {RECOVERY_LIMIT_S:g} s: {missing}"
    )
    report.recoveries_s.append(RECOVERY_LIMIT_S)
    return RECOVERY_LIMIT_S


async def _settle(fleet: Fleet, report: Report) -> None:
    """Waits until nobody holds anything; what is held after the limit has leaked."""
    deadline_s = time.monotonic() + QUIET_LIMIT_S
    while (held := await _held(fleet)) != Leaks() and time.monotonic() < deadline_s:
        await asyncio.sleep(_POLL_S)
    report.leaks.append(held or Leaks())
    if held is None:
        report.problems.append(f"round {report.rounds + 1}: a process does not answer")
    elif held:
        report.problems.append(f"round {report.rounds + 1}: still held: {held}")


async def _held(fleet: Fleet) -> Leaks | None:
    """Returns what is held; None while a process does not answer."""
    try:
        return await look(fleet)
    except (grpc.aio.AioRpcError, *REDIS_ERRORS):
        return None
