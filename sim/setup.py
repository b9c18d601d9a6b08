"""Makes the services' policy objects, as their services do, from a configuration."""

import random
from dataclasses import dataclass, field, replace

from baton.config import Config
from baton.latency import CHUNK_TOKENS
from services.admission.choice import make_door
from services.decode.policy import PredictiveSplitPolicy, SplitPolicy, ThresholdSplitPolicy
from services.router.choice import latency_settings, make_policy
from services.router.policies.latency import LatencyPolicy
from services.router.policy import RoutingPolicy
from sim.admission import MakeDesk, OpenDoor, SimDesk
from sim.policies import Policies

ROUTING = ("latency", "weighted", "least_loaded", "power_of_two", "round_robin")


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Which policies decide. `admits_all` leaves admission out, to see what routing alone does.

    `chunk_tokens` is the most of a prompt that shares a step with running streams.
    """

    routing: str = "latency"
    config: Config = field(default_factory=Config)
    admits_all: bool = False
    chunk_tokens: int = CHUNK_TOKENS

    def __post_init__(self) -> None:
        if self.routing not in ROUTING:
            raise ValueError(f"no routing policy {self.routing!r}; known are {', '.join(ROUTING)}")

    def make(self, seed: int) -> Policies:
        """Returns fresh policy objects; their random choices follow from `seed`."""
        split = self.config.split_policy
        rng = random.Random(f"routing {seed}")  # noqa: S311 - not for secrets
        return Policies(
            routing=self._routing(rng),
            split=self._split(),
            prefill_queue_max=split.prefill_queue_max,
            offload_above_tokens=split.prompt_length_threshold,
            desk=self._desk(seed),
            tpot_price=self._tpot_price,
        )

    def _routing(self, rng: random.Random) -> RoutingPolicy:
        config = self.config
        split = config.split_policy.model_copy(update={"policy": self.routing})
        if self.routing == "latency":
            settings = latency_settings(split, config.qos)
            return LatencyPolicy(replace(settings, chunk_tokens=self.chunk_tokens), rng)
        return make_policy(split, config.cache.min_cache_hit_ratio, config.qos, rng)

    @property
    def _tpot_price(self) -> float:
        return self.config.qos.ttft_slo_ms / self.config.qos.tpot_slo_ms

    def _split(self) -> SplitPolicy:
        """Returns the rule that goes with the routing, as a decode worker's main does."""
        split = self.config.split_policy
        threshold = ThresholdSplitPolicy(split.prompt_length_threshold, split.prefill_queue_max)
        if self.routing != "latency":
            return threshold
        return PredictiveSplitPolicy(threshold, self._tpot_price, self.chunk_tokens)

    def _desk(self, seed: int) -> MakeDesk:
        if self.admits_all:
            return lambda mesh: OpenDoor()
        # Without the ladder: what a shorter answer is worth, no trace says.
        door = make_door(
            self.config.qos,
            random.Random(f"admission {seed}"),  # noqa: S311 - not for secrets
            degrades=False,
        )
        return lambda mesh: SimDesk(mesh, door)
