"""How fast the simulator is: the conversation trace on fleets of four sizes."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from services.router.policy import (
    Decision,
    DecodeView,
    PrefillView,
    RouteRequest,
    StandingPolicy,
)
from sim.costs.hardware import Hardware
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.setup import PolicySpec
from sim.workload import Trace

FLEET_SIZES = (16, 64, 256, 1024)


@dataclass(frozen=True, slots=True)
class Speed:
    """One replay. Seconds are of one core."""

    workers: int
    seconds: float
    routing_s: float
    events: int


def speeds(console: Console, machine: Hardware, trace: Trace) -> list[dict[str, Any]]:
    """Measures and shows all sizes."""
    found = [_speed(machine, trace, workers) for workers in FLEET_SIZES]
    _show_speeds(console, trace, found)
    return [asdict(speed) for speed in found]


class _Timed:
    """A routing policy, and how long it took to decide. The simulation knows no such clock."""

    def __init__(self, policy: StandingPolicy) -> None:
        self.prefill_keys, self.decode_keys = policy.prefill_keys, policy.decode_keys
        self.name = policy.name
        self.seconds = 0.0
        self._policy = policy

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        started_s = time.process_time()
        decision = self._policy.choose(request, prefill, decode)
        self.seconds += time.process_time() - started_s
        return decision


def _speed(machine: Hardware, trace: Trace, workers: int) -> Speed:
    spec = FleetSpec(machine, workers // 4, workers - workers // 4)
    policies = PolicySpec(admits_all=True).make(1)
    assert isinstance(policies.routing, StandingPolicy)
    routing = _Timed(policies.routing)
    policies = replace(policies, routing=routing)
    mesh = SimMesh(spec, trace.block_tokens, policies, lambda outcome: None, asks_oracle=False)
    started_s = time.process_time()
    mesh.run(trace.requests(1))
    seconds = time.process_time() - started_s
    return Speed(workers, seconds, routing.seconds, mesh.loop.processed)


def _show_speeds(console: Console, trace: Trace, speeds: Sequence[Speed]) -> None:
    table = Table(title=f"speed on {trace.name}", title_justify="left", box=None)
    for heading in ("workers", "seconds", "of them routing", "events", "us per event"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        each_us = 1e6 * speed.seconds / max(speed.events, 1)
        table.add_row(
            str(speed.workers),
            f"{speed.seconds:.1f}",
            f"{speed.routing_s:.1f}",
            str(speed.events),
            f"{each_us:.1f}",
        )
    console.print(table)
