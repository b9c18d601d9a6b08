"""The fleet that is simulated: how many workers of which kind, on which hardware."""

from dataclasses import dataclass, field

from baton.latency import TRUSTED_SAMPLES, CostModel
from sim.costs.hardware import Hardware
from sim.engine.links import LinkSpec


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Workers by role, all on the same hardware.

    `aggregated` workers are decode workers that compute every prompt themselves, chunked; with
    them alone the fleet is the aggregated baseline. Token budgets bound one step: the first on
    prefill workers, the second where decodes share it. `kv_tokens` overrides the hardware's pool.
    """

    hardware: Hardware
    prefill: int = 0
    decode: int = 0
    aggregated: int = 0
    prefill_budget: int = 4096
    mixed_budget: int = 1024
    max_running: int = 256
    kv_tokens: int | None = None
    link: LinkSpec = field(default_factory=LinkSpec)

    def __post_init__(self) -> None:
        if self.decode + self.aggregated < 1:
            raise ValueError("a fleet needs at least one decode or aggregated worker")
        if min(self.prefill, self.decode, self.aggregated) < 0:
            raise ValueError("worker counts must not be negative")

    @property
    def workers(self) -> int:
        """All workers together."""
        return self.prefill + self.decode + self.aggregated

    @property
    def pool_tokens(self) -> int:
        """Tokens that one worker's KV pool holds."""
        return self.kv_tokens or self.hardware.kv_tokens

    @property
    def known_costs(self) -> CostModel:
        """What a router of a fleet that has run for a while knows: the costs as they are."""
        costs, link = self.hardware.costs, self.link
        return CostModel(
            prefill=costs.prefill,
            step=costs.decode,
            transfer=(link.latency_s, 1 / link.bandwidth),
            prefill_samples=TRUSTED_SAMPLES,
            step_samples=TRUSTED_SAMPLES,
            transfer_samples=TRUSTED_SAMPLES,
        )

    @property
    def label(self) -> str:
        """The fleet in a few characters: 4P+8D, 12A."""
        parts = ((self.prefill, "P"), (self.decode, "D"), (self.aggregated, "A"))
        return "+".join(f"{count}{letter}" for count, letter in parts if count)
