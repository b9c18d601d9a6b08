"""Simulated engines that take no time, alone or in pairs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from baton.engine.simulated import SimulatedEngine, SimulatedOptions, SimulatedSpec
from baton.kv.simulated import SimulatedTransport
from baton.latency import OnlineFit, WorkerCosts

BLOCK = 4
SPEC = SimulatedSpec("sim", 512, 1000, frozenset({0}), "digest", 8)
INSTANT = WorkerCosts(OnlineFit((1e-12, 1e-12, 1e-12)), OnlineFit((1e-12, 1e-12, 1e-12)))
OPTIONS = SimulatedOptions(SPEC, 64 * BLOCK * 8, BLOCK, costs=INSTANT)

StartEngine = Callable[..., Awaitable[SimulatedEngine]]


def transport_of(engine: SimulatedEngine) -> SimulatedTransport:
    transport = engine._up().transport
    assert isinstance(transport, SimulatedTransport)
    return transport


@pytest.fixture
async def start_engine() -> AsyncIterator[StartEngine]:
    started: list[SimulatedEngine] = []

    async def start(**options: Any) -> SimulatedEngine:
        engine = SimulatedEngine(replace(OPTIONS, **options))
        await engine.start(SimulatedTransport(f"agent-{len(started)}", (0.0, 0.0)))
        started.append(engine)
        return engine

    yield start
    for engine in started:
        if engine._started is not None:
            engine.audit()
        await engine.stop()


async def introduce(prefill: SimulatedEngine, decode: SimulatedEngine) -> None:
    """Makes the decode engine's pool known to the prefill engine."""
    reader = transport_of(decode)
    await transport_of(prefill).connect(
        reader.agent, reader.metadata(), decode.capabilities.kv_layout
    )
