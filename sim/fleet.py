"""The fleet that is simulated: how many workers of which kind, on which hardware."""

from dataclasses import dataclass, field

from baton.latency import TRUSTED_SAMPLES, CostModel
from sim.costs.hardware import Hardware
from sim.engine.host import Sharing
from sim.engine.links import LinkSpec
from sim.observe import Role

MIXED_BUDGET = 1024
"""Tokens of one step where decodes run. Tokens."""


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Workers by role, on the same hardware unless `prefill_hardware` says otherwise.

    `aggregated` workers are decode workers that compute every prompt themselves, chunked; with
    them alone the fleet is the aggregated baseline. Token budgets bound one step: the first on
    prefill workers, the second where decodes share it. `kv_tokens` overrides the hardware's pool.
    With `sharing` all workers are on one host and slow each other down.
    """

    hardware: Hardware
    prefill: int = 0
    decode: int = 0
    aggregated: int = 0
    prefill_budget: int = 4096
    mixed_budget: int = MIXED_BUDGET
    max_running: int = 256
    kv_tokens: int | None = None
    link: LinkSpec = field(default_factory=LinkSpec)
    prefill_hardware: Hardware | None = None
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        if self.decode + self.aggregated < 1:
            raise ValueError("a fleet needs at least one decode or aggregated worker")
        if min(self.prefill, self.decode, self.aggregated) < 0:
            raise ValueError("worker counts must not be negative")
        other = self.prefill_hardware
        if other is not None and other.kv_bytes_per_token != self.hardware.kv_bytes_per_token:
            raise ValueError(f"{other.name} and {self.hardware.name} are of different models")

    @property
    def workers(self) -> int:
        """All workers together."""
        return self.prefill + self.decode + self.aggregated

    @property
    def gpus(self) -> int:
        """All GPUs together."""
        others = self.decode + self.aggregated
        return self.prefill * self.of(Role.PREFILL).gpus + others * self.hardware.gpus

    @property
    def pools_tokens(self) -> int:
        """Tokens that all KV pools hold together."""
        prefill = self.prefill * self.pool_tokens(Role.PREFILL)
        return prefill + (self.decode + self.aggregated) * self.pool_tokens(Role.DECODE)

    @property
    def smallest_pool(self) -> int:
        """Tokens that fit into any worker's KV pool."""
        return min(self.pool_tokens(Role.PREFILL), self.pool_tokens(Role.DECODE))

    def of(self, role: Role) -> Hardware:
        """Returns what a worker of this role is."""
        return (self.prefill_hardware or self.hardware) if role is Role.PREFILL else self.hardware

    def pool_tokens(self, role: Role) -> int:
        """Returns how many tokens the KV pool of one worker holds."""
        return self.kv_tokens or self.of(role).kv_tokens

    def known_costs(self, role: Role) -> CostModel:
        """Returns what routers know of a fleet that has run a while: its costs of computing.

        What transfers add is learned during the run.
        """
        costs = self.of(role).costs
        prompts = costs.prefill
        if role is Role.PREFILL:
            prompts = costs.fitted_to_prompts(self.prefill_budget)
        return CostModel(
            prefill=prompts,
            step=costs.decode,
            prefill_samples=TRUSTED_SAMPLES,
            step_samples=TRUSTED_SAMPLES,
        )

    @property
    def label(self) -> str:
        """The fleet in a few characters: 4P+8D, 12A."""
        parts = ((self.prefill, "P"), (self.decode, "D"), (self.aggregated, "A"))
        return "+".join(f"{count}{letter}" for count, letter in parts if count)
