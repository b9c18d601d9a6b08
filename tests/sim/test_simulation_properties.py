"""What must hold for any workload on any fleet."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.requests import Priority
from sim import roster as roster_module
from sim.costs.model import StepCosts
from sim.engine.worker import SimWorker
from sim.experiment import Experiment, run_once
from sim.fleet import FleetSpec
from sim.outcome import Outcome
from sim.results.recorder import Slo
from sim.setup import PolicySpec
from sim.traces.arrivals import Arrivals
from sim.traces.synthetic import MixTrace
from sim.workload import SimRequest
from tests.sim.worlds import BLOCK, ListTrace, fleet, replay

COSTS = StepCosts(prefill=(4e-3, 1e-4, 1e-8), decode=(8e-3, 3e-4, 1e-6))

REQUESTS = st.lists(
    st.builds(
        lambda arrival, blocks, tail, output, family, shared, priority: SimRequest(
            arrival,
            blocks * BLOCK + tail,
            output,
            tuple(
                (family if n < shared else 1000 + int(arrival * 1e6)) * 100 + n
                for n in range(blocks)
            ),
            priority,
        ),
        st.floats(0, 3),
        st.integers(0, 30),
        st.integers(1, BLOCK - 1),
        st.integers(1, 40),
        st.integers(0, 2),
        st.integers(0, 30),
        st.sampled_from(Priority),
    ),
    max_size=25,
).map(lambda requests: sorted(requests, key=lambda request: request.arrival_s))

FLEETS = st.sampled_from([(0, 0, 2), (1, 1, 0), (2, 2, 1), (1, 3, 0)])


class OneStepWorker(SimWorker):
    """Simulates every decode step by itself."""

    def _schedule_run(self, start_s: float, steps: int) -> None:
        super()._schedule_run(start_s, 1)


@settings(max_examples=60, deadline=None)
@given(
    requests=REQUESTS,
    roles=FLEETS,
    kv_tokens=st.sampled_from([320, 640, 4096]),
    admits_all=st.booleans(),
    max_running=st.sampled_from([2, 64]),
)
def test_every_request_ends_once_and_every_block_comes_back(
    requests: list[SimRequest],
    roles: tuple[int, int, int],
    kv_tokens: int,
    admits_all: bool,
    max_running: int,
) -> None:
    spec = fleet(*roles, costs=COSTS, kv_tokens=kv_tokens, max_running=max_running)
    # The mesh itself asserts that nothing is live and no block is held at the end.
    mesh, outcomes = replay(spec, requests, admits_all=admits_all)
    assert sorted(map(id, requests)) == sorted(id(outcome.request) for outcome in outcomes)
    assert mesh.offered == len(requests)
    for outcome in outcomes:
        served = outcome.ending == "SERVED"
        assert served == (outcome.ttft_s is not None)
        assert 0 <= outcome.cached_tokens < outcome.request.prompt_tokens
        if outcome.ttft_s is not None:
            assert outcome.request.arrival_s + outcome.ttft_s <= outcome.ended_s
        assert (outcome.tpot_s is not None) == (served and outcome.request.output_tokens > 1)


@settings(max_examples=30, deadline=None)
@given(requests=REQUESTS, roles=FLEETS, kv_tokens=st.sampled_from([640, 4096]))
def test_many_steps_at_a_time_give_what_single_steps_give(
    requests: list[SimRequest], roles: tuple[int, int, int], kv_tokens: int
) -> None:
    spec = fleet(*roles, costs=COSTS, kv_tokens=kv_tokens)
    _, fast = replay(spec, requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roster_module, "SimWorker", OneStepWorker)
        _, slow = replay(spec, requests)
    assert [_rounded(outcome) for outcome in fast] == [_rounded(outcome) for outcome in slow]


def _rounded(outcome: Outcome) -> tuple[object, ...]:
    return (
        outcome.ending,
        outcome.reason,
        outcome.decode_worker,
        outcome.prefill_worker,
        outcome.cached_tokens,
        pytest.approx(outcome.ended_s, abs=1e-6),
    )


def _mix(fleet_spec: FleetSpec, count: int = 250, per_s: float = 12.0) -> Experiment:
    trace = MixTrace(count, Arrivals(per_s), longest=1024)
    return Experiment(fleet_spec, trace, PolicySpec(admits_all=True), Slo(0.8, 0.03))


@pytest.mark.parametrize("routing", ["weighted", "round_robin"])
def test_equal_seeds_give_equal_runs_and_others_differ(routing: str) -> None:
    spec = fleet(2, 3, costs=COSTS, kv_tokens=16_384)
    experiment = Experiment(spec, MixTrace(200), PolicySpec(routing), Slo(1.0, 0.03))
    first, again, other = (run_once(experiment, seed).metrics for seed in (1, 1, 2))
    assert first == again
    assert first.figures != other.figures


@pytest.mark.parametrize("roles", [(0, 0, 2), (1, 1, 0)])
def test_more_workers_never_lower_goodput(roles: tuple[int, int, int]) -> None:
    goodputs = []
    for factor in (1, 2, 3):
        spec = fleet(*(factor * count for count in roles), costs=COSTS, kv_tokens=16_384)
        goodputs.append(run_once(_mix(spec), 1).metrics.figures["goodput"] or 0.0)
    assert goodputs[0] < 1.0
    for fewer, more in itertools.pairwise(goodputs):
        assert more >= fewer - 0.01


def test_more_load_never_raises_the_median_ttft() -> None:
    spec = fleet(1, 2, costs=COSTS, kv_tokens=16_384)
    medians = [
        run_once(_mix(spec).at(rate), 1).metrics.figures["ttft_p50_s"] or 0.0
        for rate in (0.25, 1.0, 4.0)
    ]
    assert medians == sorted(medians)


def test_a_request_of_high_priority_overtakes_those_that_wait() -> None:
    normal = [SimRequest(0.0, 400, 2) for _ in range(8)]
    urgent = SimRequest(0.01, 400, 2, priority=Priority.HIGH)
    _, outcomes = replay(fleet(aggregated=1, kv_tokens=8192), [*normal, urgent])
    ended = {id(outcome.request): outcome.ended_s for outcome in outcomes}
    assert sum(ended[id(request)] < ended[id(urgent)] for request in normal) <= 1


def test_scaling_the_rate_scales_the_arrivals() -> None:
    trace = ListTrace([SimRequest(4.0, 10, 1)])
    [request] = trace.requests(1, 2.0)
    assert request.arrival_s == 2.0
