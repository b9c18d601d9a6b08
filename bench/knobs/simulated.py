"""Workloads in the simulator: what one configuration makes of them with one seed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from baton.config import Config
from baton.requests import Priority
from bench.qos.scenarios import ClassMix, Scenario, scenarios
from bench.qos.simulated import simulate
from services.autoscaler.app import Pacing, make_policy
from sim.autoscale import Delays
from sim.autoscale_run import ScalingTask, run_scaled
from sim.costs.hardware import Hardware
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.experiment import Experiment, LimitedTrace, run_once
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.outcome import Outcome
from sim.results.recorder import Slo
from sim.setup import PolicySpec
from sim.traces.day import DayTrace
from sim.traces.find import find
from sim.workload import SimRequest, TraceOf

Figures = Mapping[str, float | None]

REQUESTS = 2500
"""Of the conversation trace; more tell the same and take longer."""

CONVERSATION_FLEET, CONVERSATION_RATE = (4, 4), 0.9
CONVERSATION_SLO = Slo(ttft_s=30.0, tpot_s=0.05)
OVERLOAD_REQUESTS, OVERLOAD_RATE, TENANTS_RATE = 1200, 2.0, 4.0
DAY_SLO, DAY_POOL_TOKENS, DAY_START_S = Slo(2.0, 0.2), 100_000, 15.0
DAY = DayTrace(mean_per_s=3.0, day_s=1800.0)
TENANTS = ("a", "b")


def machine() -> Hardware:
    """Returns the simulated hardware: Llama 70B on eight H100, as measured in public."""
    try:
        return hardware("h100")
    except UnknownHardwareError:
        return H100_COPY


def conversation(config: Config, seed: int) -> Figures:
    """Routes the conversation trace near the load that the fleet can take."""
    prefill, decode = CONVERSATION_FLEET
    experiment = Experiment(
        FleetSpec(machine(), prefill, decode),
        LimitedTrace(find("conversation").trace, REQUESTS),
        PolicySpec(config.split_policy.policy, config, admits_all=True),
        CONVERSATION_SLO,
        CONVERSATION_RATE,
    )
    found = run_once(experiment, seed, asks_oracle=False).metrics.figures
    kept = ("goodput", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "hit_rate", "offload_share")
    return {name: found[name] for name in kept}


@dataclass(frozen=True, slots=True)
class _Given(Scenario):
    settings: Config = field(default_factory=Config)

    def config(self, policy: str) -> Config:
        """Returns the settings as they are."""
        return self.settings


def overload(config: Config, seed: int) -> Figures:
    """Offers three classes more than the fleet can take."""
    base = scenarios(machine(), OVERLOAD_REQUESTS)[0]
    given = _Given(base.name, base.trace, base.fleet, base.slo, config)
    run = simulate(given, config.qos.policy, OVERLOAD_RATE, seed, strict=False)
    classes = {
        f"{priority.name.lower()}_attainment": run.classes[priority].attainment
        for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)
    }
    return {"goodput": run.goodput, "rejected": run.rejected_share, **classes}


@dataclass(frozen=True, slots=True)
class _TwoTenants(TraceOf):
    """A trace whose requests belong to two tenants in turn."""

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        for number, request in enumerate(self.trace.requests(seed, rate)):
            yield replace(request, tenant=TENANTS[number % 2])


def tenants(config: Config, seed: int) -> Figures:
    """Lets two tenants ask for the same, together for more than the fleet can take."""
    base = scenarios(machine(), OVERLOAD_REQUESTS)[0]
    assert isinstance(base.trace, ClassMix)
    trace = _TwoTenants(replace(base.trace, high=0.0, low=0.0))
    met: Counter[str] = Counter()
    offered: Counter[str] = Counter()

    def take(outcome: Outcome) -> None:
        offered[outcome.request.tenant] += 1
        met[outcome.request.tenant] += outcome.meets(base.slo.ttft_s, base.slo.tpot_s)

    mesh = SimMesh(
        base.fleet,
        trace.block_tokens,
        PolicySpec(config=config).make(seed),
        take,
        asks_oracle=False,
    )
    mesh.run(trace.requests(seed, TENANTS_RATE))
    return {f"goodput_{name}": met[name] / offered[name] for name in TENANTS}


def day(config: Config, seed: int) -> Figures:
    """Sizes a fleet through a day's load, squeezed into half an hour, with sudden spikes."""
    task = ScalingTask(
        DAY,
        FleetSpec(machine(), 1, 1, kv_tokens=DAY_POOL_TOKENS),
        DAY_SLO,
        delays=Delays(start_s=DAY_START_S),
    )
    pacing = Pacing(start_s=DAY_START_S, learn_s=0.0)
    run = run_scaled(task, seed, lambda: make_policy(config, pacing))
    return {
        "attainment": run.attainment,
        "worker_hours": run.worker_hours,
        "turns_per_h": run.direction_changes_per_hour,
    }
