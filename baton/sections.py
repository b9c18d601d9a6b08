"""What can be configured: one frozen model per section of the configuration file.

Every leaf is a knob. Its description says what it does and ends with its unit where it has one:
docs/tuning.md and `baton config show` are made from it.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitPolicy(_Section):
    """Which workers a request goes to, and whether its prompt is computed remotely."""

    policy: Literal["latency", "weighted", "least_loaded", "power_of_two", "round_robin"] = Field(
        default="latency",
        description="How the router picks workers. latency predicts TTFT and TPOT, and decode "
        "workers then compare local and remote prefill by prediction too, once enough was "
        "measured; the others go by the threshold.",
    )
    prompt_length_threshold: int = Field(
        default=256,
        ge=0,
        description="Prompts with more uncached tokens than this go remote, unless predicted. "
        "Tokens.",
    )
    prefill_queue_max: int = Field(
        default=16,
        ge=1,
        description="Prefill workers with this many waiting take no more. Requests.",
    )
    prefix_cache_weight: float = Field(
        default=10.0, ge=0, description="weighted: score gained by a fully cached prompt. Points."
    )
    queue_length_weight: float = Field(
        default=1.5,
        ge=0,
        description="weighted: score lost per waiting request. Points per request.",
    )
    decode_load_weight: float = Field(
        default=0.5,
        ge=0,
        description="weighted: score lost per running generation. Points per request.",
    )
    enable_hotspot_prevention: bool = Field(
        default=True,
        description="weighted: ignore a cached prefix whose holder is busier than it is worth.",
    )


class Cache(_Section):
    """The KV pool of each worker and the reuse of prefixes."""

    reuse_prefix: bool = Field(default=True, description="Keep computed prefixes and reuse them.")
    min_cache_hit_ratio: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="weighted: smallest cached share of a prompt that attracts it. Share.",
    )
    block_size: int = Field(default=16, ge=1, le=512, description="Tokens per KV block. Tokens.")
    kv_memory_mib: int = Field(default=256, ge=1, description="Size of a worker's KV pool. MiB.")
    host_memory_mib: int = Field(
        default=0,
        ge=0,
        description="Host memory of a worker for blocks that its pool evicts; 0 drops them. MiB.",
    )


class EngineSection(_Section):
    """What computes on the workers."""

    kind: Literal["torch", "sglang", "simulated"] = Field(
        default="torch",
        description="The engine on prefill and decode workers; simulated computes nothing.",
    )
    sglang: dict[str, bool | int | float | str | None] = Field(
        default={},
        description="sglang: arguments of its engine by their own names, such as tp_size or "
        "mem_fraction_static; those that are the mesh's are refused. Mapping.",
    )

    @field_validator("sglang", mode="before")
    @classmethod
    def _empty_without_a_value(cls, value: object) -> object:
        """A variable that is set to nothing sets nothing."""
        return {} if value is None else value


class PrefillScaleUp(_Section):
    """Add prefill workers above either bound."""

    queue_length: int = Field(default=8, ge=1, description="Waiting requests per worker. Requests.")
    gpu_utilization: float = Field(
        default=80, gt=0, le=100, description="Busy engine time. Percent."
    )


class PrefillScaleDown(_Section):
    """Remove prefill workers below both bounds."""

    queue_length: int = Field(default=2, ge=0, description="Waiting requests per worker. Requests.")
    gpu_utilization: float = Field(
        default=40, ge=0, le=100, description="Busy engine time. Percent."
    )


class DecodeScaleUp(_Section):
    """Add decode workers above either bound."""

    queue_length: int = Field(
        default=16, ge=1, description="Waiting requests per worker. Requests."
    )
    kv_cache_usage: float = Field(default=75, gt=0, le=100, description="Owned KV blocks. Percent.")


class DecodeScaleDown(_Section):
    """Remove decode workers below both bounds."""

    queue_length: int = Field(default=4, ge=0, description="Waiting requests per worker. Requests.")
    kv_cache_usage: float = Field(default=30, ge=0, le=100, description="Owned KV blocks. Percent.")


class _Pool(_Section):
    min_replicas: int = Field(
        default=1, ge=0, description="Fewest workers; `baton up` starts as many. Workers."
    )
    max_replicas: int = Field(default=4, ge=1, description="Most workers. Workers.")

    @model_validator(mode="after")
    def _ordered(self) -> "_Pool":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) exceeds max_replicas ({self.max_replicas})"
            )
        return self


def _check_gap(name: str, down: float, up: float) -> None:
    if down >= up:
        raise ValueError(
            f"scale_down.{name} ({down:g}) must be below scale_up.{name} ({up:g}), "
            "or the pool swings"
        )


class PrefillPool(_Pool):
    """Size of the prefill pool. `baton up` starts the minimum."""

    scale_up: PrefillScaleUp = PrefillScaleUp()
    scale_down: PrefillScaleDown = PrefillScaleDown()

    @model_validator(mode="after")
    def _steady(self) -> "PrefillPool":
        up, down = self.scale_up, self.scale_down
        _check_gap("queue_length", down.queue_length, up.queue_length)
        _check_gap("gpu_utilization", down.gpu_utilization, up.gpu_utilization)
        return self


class DecodePool(_Pool):
    """Size of the decode pool. `baton up` starts the minimum."""

    scale_up: DecodeScaleUp = DecodeScaleUp()
    scale_down: DecodeScaleDown = DecodeScaleDown()

    @model_validator(mode="after")
    def _steady(self) -> "DecodePool":
        up, down = self.scale_up, self.scale_down
        _check_gap("queue_length", down.queue_length, up.queue_length)
        _check_gap("kv_cache_usage", down.kv_cache_usage, up.kv_cache_usage)
        return self


class Autoscale(_Section):
    """How many workers of each role. `baton up` starts the minimum."""

    policy: Literal["slo", "thresholds"] = Field(
        default="slo",
        description="How pools are sized: from forecast demand and fitted costs under the qos "
        "targets, or by the thresholds below. Both keep to min_replicas and max_replicas.",
    )
    prefill: PrefillPool = PrefillPool()
    decode: DecodePool = DecodePool()


class TenantLimits(_Section):
    """What one tenant may do. Left out is no limit."""

    requests_per_s: float | None = Field(default=None, gt=0)
    concurrent: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, gt=0)


class Qos(_Section):
    """Latency targets and what happens when they cannot be met."""

    enable_early_rejection: bool = Field(
        default=True, description="Reject at the door what would miss its target."
    )
    low_priority_threshold_ms: float = Field(
        default=500,
        gt=0,
        description="Predicted TTFT above which low priority is rejected. Milliseconds.",
    )
    reject_on_slo_violation: bool = Field(
        default=True, description="Reject normal priority too when its TTFT target cannot be met."
    )
    ttft_slo_ms: float = Field(default=2000, gt=0, description="Target for TTFT. Milliseconds.")
    tpot_slo_ms: float = Field(default=200, gt=0, description="Target for TPOT. Milliseconds.")
    policy: Literal["predictive", "slo_now", "queue_estimate"] = Field(
        default="predictive",
        description="How admission decides. predictive looks at the decode load of the moment when "
        "the prefill will have ended, slo_now at today's, queue_estimate multiplies queue lengths "
        "with average times (the chapter's rule).",
    )
    tenants: dict[str, TenantLimits] = Field(
        default_factory=dict,
        description="Limits by tenant: requests_per_s, concurrent, weight (its share relative to "
        "others). The entry `default` holds for every tenant without one of its own. Mapping.",
    )
    fail_closed: list[Literal["low", "normal", "high"]] = Field(
        default_factory=list,
        description="Classes that are refused when no admission service answers; the others go on "
        "without a permit. Classes.",
    )


class Mesh(_Section):
    """How the processes find and watch each other."""

    redis_url: str = Field(
        default="", description="Redis of the fleet; empty lets `baton up` start its own."
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address that services bind and advertise; loopback by default.",
    )
    otlp_endpoint: str = Field(
        default="", description="OTLP/gRPC endpoint for traces and metrics; empty exports nothing."
    )


class Config(_Section):
    """Everything that can be configured."""

    model: str = Field(
        default="baton-tiny",
        description="The model: `baton-tiny` or the path of a model directory.",
    )
    split_policy: SplitPolicy = SplitPolicy()
    cache: Cache = Cache()
    engine: EngineSection = EngineSection()
    autoscale: Autoscale = Autoscale()
    qos: Qos = Qos()
    mesh: Mesh = Mesh()
