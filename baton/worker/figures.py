"""A worker's figures: taken at every tick, checked, told to the fleet and to the meters."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from baton.engine.base import Engine
from baton.kv.transfer import KvTransport
from baton.state.records import WorkerStats
from baton.state.registry import Registration
from baton.telemetry.names import ATTR_COST, COST_ERROR, KV_BLOCKS, KV_LEASES, QUEUED
from baton.telemetry.providers import Attributes, Telemetry
from baton.worker.costs import CostBook
from baton.worker.gate import WorkGate

logger = logging.getLogger(__name__)

TICK_S = 0.04
"""While busy every tick is published; readers count on 50 ms."""

IDLE_INTERVAL_S = 0.4
"""While idle; readers take figures older than a second for stale."""


class Figures:
    """Reads the engine on the event loop; everybody else gets the last reading."""

    def __init__(
        self,
        engine: Engine,
        gate: WorkGate,
        costs: CostBook | None = None,
        transport: KvTransport | None = None,
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._gate = gate
        self._costs = costs or CostBook()
        self._last: WorkerStats | None = None
        self._is_balanced = True

    def read(self) -> WorkerStats:
        """Returns the figures of this moment. Logs when KV blocks appear or vanish."""
        stats = WorkerStats.of_engine(
            self._engine.stats(), time.time(), not self._gate.takes_work, self._costs.model
        )
        if self._transport is not None:
            stats = replace(stats, kv_paths=dict(Counter(self._transport.paths().values())))
        self._last = stats
        self._check(stats)
        return stats

    def observe(self, telemetry: Telemetry) -> None:
        """Registers the gauges; they show the last reading."""
        telemetry.gauge(KV_BLOCKS, self._blocks)
        telemetry.gauge(KV_LEASES, lambda: [(s.kv_leases, {}) for s in self._readings()])
        telemetry.gauge(QUEUED, lambda: [(s.queued_requests, {}) for s in self._readings()])
        telemetry.gauge(COST_ERROR, self._cost_errors)

    async def publish(self, registration: Registration) -> None:
        """Tells the fleet until cancelled: every tick while busy, now and then while idle."""
        next_s = 0.0
        while True:
            self._costs.learn(self._engine.take_samples())
            stats = self.read()
            if _is_busy(stats) or time.monotonic() >= next_s:
                await registration.publish_stats(stats)
                # The first tick after the last work tells that it is over.
                next_s = 0.0 if _is_busy(stats) else time.monotonic() + IDLE_INTERVAL_S
            await asyncio.sleep(TICK_S)

    def _cost_errors(self) -> Iterator[tuple[float, Attributes]]:
        """Yields the error of each cost that was measured."""
        costs = self._costs.model
        if costs.prefill_samples:
            yield costs.prefill_error, {ATTR_COST: "prefill"}
        if costs.step_samples:
            yield costs.step_error, {ATTR_COST: "step"}
        if costs.transfer_samples:
            yield costs.transfer_error, {ATTR_COST: "transfer"}

    def _check(self, stats: WorkerStats) -> None:
        missing = _unaccounted(stats)
        if missing and self._is_balanced:
            logger.error("KV blocks are unaccounted for blocks=%d stats=%s", missing, stats)
        self._is_balanced = not missing

    def _readings(self) -> Iterator[WorkerStats]:
        if self._last is not None:
            yield self._last

    def _blocks(self) -> Iterator[tuple[float, Attributes]]:
        for stats in self._readings():
            yield stats.kv_blocks_free, {"state": "free"}
            yield stats.kv_blocks_cached, {"state": "cached"}
            yield stats.kv_blocks_owned, {"state": "owned"}
            yield stats.kv_host_used, {"state": "host"}
            # Zero unless the accounting broke: the one to alert on.
            yield _unaccounted(stats), {"state": "unaccounted"}


def _unaccounted(stats: WorkerStats) -> int:
    known = stats.kv_blocks_free + stats.kv_blocks_cached + stats.kv_blocks_owned
    return stats.kv_blocks_total - known


def _is_busy(stats: WorkerStats) -> bool:
    return bool(stats.queued_requests or stats.prefilling_requests or stats.decoding_requests)
