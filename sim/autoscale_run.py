"""One run of a fleet that a policy sizes, or of a fixed one, and what it cost."""

from collections.abc import Callable
from dataclasses import dataclass, field

from baton.config import Config
from services.autoscaler.policy import ScalingPolicy
from sim.autoscale import LOOK_EVERY_S, AutoscaleController, Delays, ScalingRecord, TrafficCounter
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.observe import Role
from sim.outcome import Outcome
from sim.results.recorder import Recorder, Slo
from sim.setup import PolicySpec
from sim.workload import Trace

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class ScalingTask:
    """What is served: a trace at a rate, within limits, from a fleet of a first size."""

    trace: Trace
    fleet: FleetSpec
    slo: Slo
    rate: float = 1.0
    delays: Delays = field(default_factory=Delays)


@dataclass(frozen=True, slots=True)
class ScalingResult:
    """What one run came to. `attainment` is the share of offered requests within both limits."""

    attainment: float
    worker_hours: float
    direction_changes_per_hour: float
    record: ScalingRecord | None
    recorder: Recorder


def run_scaled(
    task: ScalingTask, seed: int, make_policy: Callable[[], ScalingPolicy] | None
) -> ScalingResult:
    """Replays the trace once; without a policy the fleet keeps its size."""
    config = _promising(task.slo)
    recorder = Recorder(task.slo, config.split_policy.prompt_length_threshold)
    traffic = TrafficCounter(config.split_policy.prompt_length_threshold, task.slo)

    def ended(outcome: Outcome) -> None:
        recorder.add(outcome)
        traffic.ended(outcome)

    policies = PolicySpec(config=config, admits_all=True).make(seed)
    mesh = SimMesh(task.fleet, task.trace.block_tokens, policies, ended, asks_oracle=False)
    controller: AutoscaleController | None = None
    if make_policy is not None:
        controller = AutoscaleController(mesh, make_policy(), traffic.meter.read, task.delays)
        mesh.every(LOOK_EVERY_S, controller)
    mesh.run(traffic.counting(task.trace.requests(seed, task.rate)))
    hours = mesh.loop.now_s / _HOUR_S
    record = controller.record if controller else None
    present_s = sum(sight.present_s(mesh.loop.now_s) for sight in mesh.roster.ever(*Role))
    return ScalingResult(
        attainment=recorder.everyone.met / max(1, recorder.everyone.offered),
        worker_hours=(present_s + (record.starting_s if record else 0.0)) / _HOUR_S,
        direction_changes_per_hour=record.direction_changes / hours if record else 0.0,
        record=record,
        recorder=recorder,
    )


def _promising(slo: Slo) -> Config:
    config = Config()
    qos = config.qos.model_copy(
        update={"ttft_slo_ms": slo.ttft_s * 1e3, "tpot_slo_ms": slo.tpot_s * 1e3}
    )
    return config.model_copy(update={"qos": qos})
